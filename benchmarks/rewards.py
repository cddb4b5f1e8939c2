"""What each reward is for: short runs of reinforcement learning that differ in their rewards alone.

    python benchmarks/rewards.py --out RUNS [--model DIR] [--quick] [--json] [--limit 300]
                                 [--set KEY=VALUE ...] [--only NAME ...]

Every run starts from the same weights, with the same seed and scenes (``demo-rl``, as ``--set``
changes it); then start and results answer the same held-out scenes greedily, without the grammar
(``paired.py``). A run that is in RUNS already is not made again. Writes ``RUNS/curves.png``. The
last line printed with ``--json`` is one object: machine, versions, settings, and for each run its
weights, for each data set what ``paired.py`` tells, and the course of the run: step, mean reward of
all sampled answers, and of those learned from reward, IoU, tokens, entropy.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from paired import DATA, answers, compare
from provenance import provenance

from simpleseg_training import rl
from simpleseg_training.pairs import held_out
from simpleseg_training.train_config import read_config

SHIPPED = Path("server/simpleseg_server/demo_model")
RUNS: dict[str, dict[str, float]] = {
    "iou": {"iou": 1, "distance": 0, "format": 0, "length": 0},
    "iou + distance": {"iou": 1, "distance": 0.5, "format": 0, "length": 0},
    "iou + distance + format": {"iou": 1, "distance": 0.5, "format": 0.2, "length": 0},
    "all and length": {"iou": 1, "distance": 0.5, "format": 0.2, "length": 0.3},
}
COURSE = {
    "reward": "reward",
    "iou": "rewards/iou/mean",
    "all": "rollouts/reward",
    "tokens": "completions/mean_length",
    "entropy": "entropy",
}
PANELS = {
    "iou": "IoU of the answers learned from",
    "tokens": "their tokens",
    "entropy": "entropy of a token",
}


def trained(name: str, out: Path, model: Path, overrides: list[str]) -> Path:
    """The checkpoint of a run with these rewards."""
    folder = out / name.replace(" + ", "-").replace(" ", "-")
    if not (folder / "checkpoint" / "model.safetensors").is_file():
        weights = [f"rewards.{reward}={weight}" for reward, weight in RUNS[name].items()]
        unwatched = ["records.tensorboard=false", "evaluation.data=[]"]
        chosen = [f"model.path={model}", *unwatched, *overrides, *weights]
        rl.train_with(read_config("demo-rl", chosen), "demo-rl", folder)
    return folder / "checkpoint"


def course(log: Path) -> list[dict[str, float]]:
    """What a run's log tells of its steps."""
    records = [json.loads(line) for line in log.read_text().splitlines()]
    return [
        {"step": record["step"]} | {k: round(record[v], 4) for k, v in COURSE.items()}
        for record in records
        if "reward" in record
    ]


def measure(checkpoints: dict[str, Path], start: Path, limit: int) -> dict[str, Any]:
    """For each run and data set the change from the start."""
    found: dict[str, Any] = {name: {} for name in checkpoints}
    for data in DATA:
        pairs = held_out(data, limit, "test")
        before = answers(start, pairs)
        for name, checkpoint in checkpoints.items():
            found[name][data] = compare(before, answers(checkpoint, pairs), pairs)
    return found


def draw(courses: dict[str, list[dict[str, float]]], out: Path) -> None:
    """A panel for each thing that is told of the course, a line for each run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(12, 3), layout="constrained")
    for axis, (key, title) in zip(axes, PANELS.items(), strict=True):
        for name, steps in courses.items():
            axis.plot([s["step"] for s in steps], [s[key] for s in steps], label=name)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(out, dpi=80)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Ablation of the rewards.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--model", type=Path, default=SHIPPED, help="what the runs start from")
    parser.add_argument("--quick", action="store_true", help="two small steps, 10 scenes")
    parser.add_argument("--json", action="store_true", help="print one JSON object, last")
    parser.add_argument("--limit", type=int, default=300, help="held-out scenes of each data set")
    parser.add_argument("--set", action="append", default=[], help="as of `simpleseg train rl`")
    parser.add_argument("--only", action="append", choices=list(RUNS), help="these runs alone")
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads that wait for each other are slower on a busy machine
    limit = 10 if options.quick else options.limit
    quick = ["optimisation.steps=2", "rollouts.prompts=4", "optimisation.device_batch=16"]
    overrides = [*options.set, *(quick if options.quick else [])]
    inputs = f"{', '.join(DATA)} test, {limit} scenes each"
    said = provenance("torch", "transformers", "trl", model=options.model.name, inputs=inputs)
    checkpoints = {
        name: trained(name, options.out, options.model, overrides) for name in options.only or RUNS
    }
    courses = {name: course(made.parent / "log.jsonl") for name, made in checkpoints.items()}
    draw(courses, options.out / "curves.png")
    changes = measure(checkpoints, options.model, limit)
    results = {
        name: {"weights": RUNS[name], "change": changes[name], "course": courses[name]}
        for name in checkpoints
    }
    print(
        json.dumps({**said, "settings": overrides, "results": results}) if options.json else changes
    )


if __name__ == "__main__":
    main()
