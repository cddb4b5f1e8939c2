"""The log of a fine-tuning run as curves."""

import json
from pathlib import Path
from typing import Any

PANELS = {
    "held-out questions, greedy: mean IoU": ("eval/{}/giou",),
    "held-out questions: share of answers in the language": ("eval/{}/valid",),
    "loss": ("loss", "eval_loss"),
    "reward, mean of a step": ("reward", "rewards/{}/mean"),
    "reward, deviation in a group": ("reward_std", "frac_reward_zero_std"),
    "tokens of an answer": ("completions/mean_length", "completions/max_length"),
    "KL divergence from the start": ("kl",),
    "entropy of a token": ("entropy",),
}


def series(records: list[dict[str, Any]], pattern: str) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every key that fits the pattern, in which ``{}`` is any name.

    >>> series([{"step": 1, "rewards/iou/mean": 0.5}], "rewards/{}/mean")
    {'iou': [(1, 0.5)]}
    """
    before, _, after = pattern.partition("{}")
    found: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for key, value in record.items():
            fits = key.startswith(before) and key.endswith(after) and key != before + after
            if key == pattern or ("{}" in pattern and fits):
                name = key.removeprefix(before).removesuffix(after) if fits else key
                found.setdefault(name, []).append((record["step"], value))
    return found


def write_run_curves(log: Path, out: Path) -> None:
    """A panel for each thing that the log tells of, against the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = [json.loads(line) for line in log.read_text().splitlines()]
    panels = {
        title: lines
        for title, patterns in PANELS.items()
        if (lines := {n: p for one in patterns for n, p in series(records, one).items()})
    }
    rows = -(-len(panels) // 2)
    figure, axes = pyplot.subplots(
        rows, 2, figsize=(10, 2.6 * rows), squeeze=False, layout="constrained"
    )
    for spare in axes.flat[len(panels) :]:
        spare.set_axis_off()
    for axis, (title, lines) in zip(axes.flat, panels.items(), strict=False):
        for name, points in lines.items():
            axis.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 9 else "")
        axis.set_title(title, fontsize=10)
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.savefig(out, dpi=90)
    pyplot.close(figure)
