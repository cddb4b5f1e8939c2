"""Decode steps for each token by way of drafting, as the benchmarks recorded them."""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from style import BLUE, GREEN, GREY, save

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
DATA = {
    "scenes 480 px, epsilon 0.005": "held-out scenes",
    "drawn 480 px, epsilon 0.005": "drawn shapes",
    "photographs, epsilon 0.005": "objects on photographs",
}
WAYS = {
    "structure": ("what stands between numbers", GREY),
    "copy 2 digits": ("and two digits of the vertex before", BLUE),
    "learned": ("and digits by learned statistics (what is used)", GREEN),
}


def draw(path: Path) -> None:
    results = _results("drafting.json")["results"]
    figure = Figure(figsize=(8.6, 3.4))
    axes = figure.add_subplot()
    height = 0.26
    for column, (way, (label, color)) in enumerate(WAYS.items()):
        values = [results[data][way]["steps_per_token"] for data in DATA]
        places = [-row - height * column for row in range(len(DATA))]
        bars = axes.barh(places, values, height * 0.9, color=color, label=label)
        axes.bar_label(bars, fmt="%.3f", padding=3, fontsize=8)
    axes.axvline(1, color=GREY, lw=1, ls=":")
    axes.text(0.99, 0.32, "no drafts", ha="right", fontsize=8, color=GREY)
    axes.set_yticks([-row - height for row in range(len(DATA))], list(DATA.values()))
    axes.set_xlim(0, 1.02)
    axes.set_ylim(-2.75, 0.55)
    axes.set_xlabel("decode steps for each token of given outlines (less is faster)")
    axes.legend(loc="center right", frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def _results(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))
