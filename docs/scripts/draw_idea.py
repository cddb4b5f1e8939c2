"""What it is, in one picture: image and phrase, the text that the model writes, the region."""

import textwrap
from pathlib import Path

from matplotlib.figure import Figure
from recording import Recorded
from style import BLUE, GREY, INK, MONO, save

from simpleseg_polygon.codec import parse_region

_LINE = 33


def draw(recorded: Recorded, path: Path) -> None:
    figure = Figure(figsize=(10.4, 3.1), dpi=110)
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1.35, 1])
    for axes in (left, middle, right):
        axes.set_axis_off()
    left.set_title(f"“{recorded.phrase}”", fontsize=11, color=INK)
    middle.set_title("what the model writes", fontsize=11, color=INK, y=0.945)
    right.set_title("what the server answers", fontsize=11, color=INK)
    left.imshow(recorded.image)
    lines = "\n".join(textwrap.wrap(recorded.text, _LINE))
    middle.text(0.5, 0.5, lines, family=MONO, fontsize=8.5, ha="center", va="center", color=INK)
    for x in (0.0, 1.0):
        middle.text(x, 0.5, "→", fontsize=20, color=GREY, ha="center", va="center")
    right.imshow(recorded.image)
    width, height = recorded.image.size
    for ring in parse_region(recorded.text).value.parts:
        xs, ys = ([x * width for x, _ in ring], [y * height for _, y in ring])
        right.fill(xs, ys, fc=BLUE, alpha=0.35)
        right.plot([*xs, xs[0]], [*ys, ys[0]], "-o", color=BLUE, lw=2, ms=4)
    save(figure, path)
