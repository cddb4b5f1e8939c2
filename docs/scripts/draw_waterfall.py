"""Where the time of a request goes, and how near the cost model comes, as the benchmarks recorded
them. Not drawn with the other figures where ``benchmarks/waterfall.py`` has recorded nothing."""

import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from style import BLUE, GREEN, GREY, INK, RED, save

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
ENGINES = {"embedded": "embedded engine", "vllm": "vLLM, CPU build"}
STAGES = {
    "read_body": ("read the body", GREY),
    "decode_image": ("decode the image", GREEN),
    "queue": ("wait", GREY),
    "preprocess": ("preprocess", GREEN),
    "vision_encoder": ("vision encoder", BLUE),
    "prefill": ("rest of prefill", BLUE),
    "decode": ("decode steps", BLUE),
    "parse": ("parse", RED),
    "rasterize": ("rasterize", RED),
    "encode_and_other": ("encode, HTTP, rest", GREY),
}


def recorded(results: Path = RESULTS) -> dict[str, Any]:
    """What there is, by engine."""
    files = {engine: results / f"waterfall-{engine}.json" for engine in ENGINES}
    return {engine: json.loads(file.read_text()) for engine, file in files.items() if file.exists()}


def draw(path: Path, results: Path = RESULTS) -> None:
    found = recorded(results)
    if not found:
        return
    figure = Figure(figsize=(9.6, 3.4 * len(found)))
    rows = figure.subplots(len(found), 2, squeeze=False, width_ratios=(2, 1))
    for (stages, model), (engine, result) in zip(rows, found.items(), strict=True):
        _stages(stages, result["waterfall_ms"], ENGINES[engine])
        _model(model, result["laws"]["engine"])
    figure.tight_layout()
    save(figure, path)


def _stages(axes: Axes, waterfall: dict[str, float], title: str) -> None:
    began = 0.0
    for row, (stage, (label, color)) in enumerate(STAGES.items()):
        ms = waterfall[stage]
        axes.barh(-row, ms, left=began, color=color)
        began += ms
        axes.text(began, -row, f"  {label} {ms:.3g} ms", va="center", fontsize=8, color=INK)
    axes.set_xlim(0, 1.35 * waterfall["total"])
    axes.set_yticks([])
    axes.set_xlabel(f"{title}: milliseconds of one request, {waterfall['total']:.0f} in all")
    axes.spines[["top", "right", "left"]].set_visible(False)


def _model(axes: Axes, law: dict[str, Any]) -> None:
    """Measured against predicted, in milliseconds for a mask."""
    points = [point["measured"] for part in ("fitted", "held_out") for point in law[part]]
    axes.plot([0, max(points)], [0, max(points)], color=GREY, lw=1, ls=":")
    for part, color, label in (("fitted", GREY, "fitted"), ("held_out", GREEN, "held out")):
        predicted = [point["predicted"] for point in law[part]]
        axes.scatter(predicted, [p["measured"] for p in law[part]], color=color, label=label)
    axes.set_xlabel("predicted ms for a mask")
    axes.set_ylabel("measured")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
