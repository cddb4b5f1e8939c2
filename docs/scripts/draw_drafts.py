"""A real answer, a row for every forward pass: what was drafted, what of it was right."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from recording import Pass, Recorded
from style import BLUE, GREEN, GREY, INK, MONO, RED, save

ROWS = 11
LEGEND = {
    "drafted, and right": GREEN,
    "the model's own": BLUE,
    "forced by the grammar": GREY,
    "drafted, and refused": RED,
}
_CHAR, _PAD, _GAP = 0.15, 0.17, 0.05


def draw(recorded: Recorded, path: Path) -> None:
    figure = Figure(figsize=(8.4, 4.6))
    axes = figure.add_subplot()
    axes.set_axis_off()
    for row, step in enumerate(recorded.passes[:ROWS]):
        axes.text(-0.25, -row, str(row + 1), ha="right", va="center", color=GREY, fontsize=8)
        _draw_pass(axes, step, -row)
    at = 0.0
    for word, color in LEGEND.items():
        axes.text(at, 1.05, f"■ {word}", color=color, fontsize=9)
        at += 0.088 * len(word) + 0.42
    tokens = sum(_taken(step) for step in recorded.passes)
    told = f"{tokens} tokens in {len(recorded.passes)} forward passes"
    more = f"; the first {ROWS} are shown" if len(recorded.passes) > ROWS else ""
    axes.text(0, -min(ROWS, len(recorded.passes)) - 0.15, told + more, color=INK, fontsize=9)
    axes.set_xlim(-0.6, 7.2)
    axes.set_ylim(-ROWS - 0.6, 1.6)
    save(figure, path)


def _taken(step: Pass) -> int:
    return len(step.accepted) + len(step.chosen) + len(step.forced)


def _draw_pass(axes: Axes, step: Pass, y: float) -> None:
    at = 0.0
    for texts, color in (
        (step.accepted, GREEN),
        (step.chosen, BLUE),
        (step.forced, GREY),
        (step.refused, RED),
    ):
        if texts is step.refused:
            at += 0.25
        for text in texts:
            at = _token(axes, text, at, y, color, struck=texts is step.refused)


def _token(axes: Axes, text: str, x: float, y: float, color: str, *, struck: bool) -> float:
    """Draws a token at x and returns where the next one begins."""
    width = _CHAR * len(text) + _PAD
    axes.text(
        x + width / 2,
        y,
        text.replace(" ", "␣"),
        family=MONO,
        fontsize=9,
        ha="center",
        va="center",
        color=color,
    )
    left, right, low, high = x, x + width, y - 0.36, y + 0.36
    outline = ([left, right, right, left, left], [low, low, high, high, low])
    axes.plot(*outline, color=color, lw=1.0, ls=":" if struck else "-")
    return right + _GAP
