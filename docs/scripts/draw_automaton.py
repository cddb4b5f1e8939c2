"""The automaton of a region's answers, every state and edge as the code has them."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from style import BLUE, GREEN, GREY, INK, MONO, RED, save

from simpleseg_polygon.automaton import Event, automaton

TEXTS = {
    # A text that leads to a state, and where that state is drawn: x to the right, y in the upper
    # row, and back below.
    "": (-3.0, 0.0),
    "[": (-2.0, 0.0),
    "[[": (-1.0, 0.0),
    "[[[": (0.0, 0.0),
    **{f"[[[{text}": (1.0 + 1.0 * i, 0.0) for i, text in enumerate(("0", "0.", "0.1", "0.12"))},
    "[[[0.123": (5.0, 0.0),
    "[[[1": (1.0, 1.0),
    "[[[1.": (2.5, 1.0),
    "[[[1.0": (4.0, 1.0),
    "[[[0.1,": (6.0, 0.0),
    "[[[0.1, ": (6.0, -2.0),
    **{
        f"[[[0.1, {text}": (5.0 - 1.0 * i, -2.0)
        for i, text in enumerate(("0", "0.", "0.1", "0.12"))
    },
    "[[[0.1, 0.123": (1.0, -2.0),
    "[[[0.1, 1": (5.0, -3.0),
    "[[[0.1, 1.": (3.5, -3.0),
    "[[[0.1, 1.0": (2.0, -3.0),
    "[[[0.1, 0.1]": (0.0, -2.0),
    "[[[0.1, 0.1],": (0.0, -1.33),
    "[[[0.1, 0.1], ": (0.0, -0.67),
    "[[[0.1, 0.1]]": (-1.0, -2.0),
    "[[[0.1, 0.1]],": (-1.0, -1.33),
    "[[[0.1, 0.1]], ": (-1.0, -0.67),
    "[[[0.1, 0.1]]]": (-2.0, -2.0),
    "[[[0.1, 0.1]]].": (-3.0, -2.0),
}
COLORS: dict[Event, str] = {"": GREY, "P": BLUE, "M": GREEN, "C": BLUE, "N": RED}
MEANINGS = {
    BLUE: "a point ends, a part closes",
    GREEN: "one more point",
    RED: "one more part",
}
_RADIUS = 0.17


def draw(path: Path) -> None:
    figure = Figure(figsize=(11, 5.2))
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_aspect("equal")
    places = _places()
    for source, target, label, event in _arrows():
        _arrow(axes, places[source], places[target], label, COLORS[event])
    for state, (x, y) in places.items():
        ends = state in automaton("region").accepting
        axes.plot(x, y, "o", ms=15, mfc="white", mec=INK, mew=2.6 if ends else 1.1)
        axes.text(x, y, str(state), ha="center", va="center", fontsize=7)
    for row, (color, meaning) in enumerate(MEANINGS.items()):
        axes.text(-3.2, -2.75 - 0.3 * row, meaning, color=color, fontsize=9)
    axes.text(3.0, 1.35, "x", fontsize=11, style="italic")
    axes.text(3.0, -1.62, "y", fontsize=11, style="italic")
    axes.set_xlim(-3.4, 6.6)
    axes.set_ylim(-3.6, 1.6)
    save(figure, path)


def _places() -> dict[int, tuple[float, float]]:
    """Raises AssertionError where a state would be missing from the picture."""
    places = {state_after(text): place for text, place in TEXTS.items()}
    assert sorted(places) == list(range(len(automaton("region").edges)))
    return places


def state_after(text: str) -> int:
    """
    >>> state_after("") == 0
    True
    """
    state = 0
    for byte in text.encode():
        state, _ = automaton("region").edges[state][byte]
    return state


def _arrows() -> Iterable[tuple[int, int, str, Event]]:
    """Edges with the same ends as one, with the bytes that pass them."""
    bytes_of: dict[tuple[int, int, Event], str] = defaultdict(str)
    for source, edges in enumerate(automaton("region").edges):
        for byte, (target, event) in edges.items():
            bytes_of[source, target, event] += chr(byte)
    for (source, target, event), passed in bytes_of.items():
        label = "0-9" if passed == "0123456789" else passed.replace(" ", "␣")
        yield source, target, label, event


def _arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], label: str, color: str
) -> None:
    (x0, y0), (x1, y1) = start, end
    bend = _bend(start, end)
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            connectionstyle=f"arc3,rad={bend}",
            arrowstyle="-|>",
            mutation_scale=9,
            shrinkA=8.5,
            shrinkB=8.5,
            color=color,
            lw=1.2,
        )
    )
    # The middle of the arc lies half as far out as its control point.
    x = (x0 + x1) / 2 + bend * (y1 - y0) / 2
    y = (y0 + y1) / 2 - bend * (x1 - x0) / 2
    if abs(x1 - x0) < 0.1 and abs(y1 - y0) < 1:  # no room on a short upright arrow
        x += 0.22
    box = {"boxstyle": "square,pad=0.08", "fc": "white", "ec": "none"}
    axes.text(x, y, label, ha="center", va="center", family=MONO, color=color, fontsize=8, bbox=box)


def _bend(start: tuple[float, float], end: tuple[float, float]) -> float:
    """Straight between neighbours, else around what lies between."""
    along, across = abs(end[0] - start[0]), abs(end[1] - start[1])
    if across > 0.1:
        return 0.0
    return 0.0 if along < 1.6 else 0.33
