"""The answers of each task as an automaton over bytes, with the events that budgets count.

A budget is a few counters beside the automaton, not more states: 16 states per vertex would make
the table grow with the budget, and counters can be reserved ahead so that an answer always closes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from simpleseg_polygon.prompts import Target

ALPHABET = b"[]0123456789., "
"""Every byte that an answer can hold."""

POINT_BYTES = len(", [0.123, 0.456]")
"""The longest spelling of one more vertex in a part, hence the most tokens it can take."""

Event = Literal["", "P", "M", "C", "N"]
"""What passing an edge means: a Point ends, a list goes on with More, a part Closes, a New part
comes. A list of points or boxes knows only P and M."""


@dataclass(frozen=True)
class Budget:
    """How long an answer may get, from its first token to its end token.

    ``max_tokens`` counts the end token. ``max_points`` bounds the vertices of a region, over all
    its parts, or the points of a list; ``max_parts`` the parts of a region or the boxes of a list.
    ``min_points`` is the least vertices in each part of a region; 1 gives the flat language in
    which parts may be single points, as in the released training data. None means no bound but
    ``max_tokens``.

    >>> Budget(max_tokens=512, max_points=32).min_points
    3

    Raises ValueError where a bound is below 1.
    """

    max_tokens: int
    max_points: int | None = None
    max_parts: int | None = None
    min_points: int = 3

    def __post_init__(self) -> None:
        for name, bound in vars(self).items():
            if bound is not None and bound < 1:
                raise ValueError(f"{name} must be at least 1, not {bound}")


@dataclass(frozen=True)
class Automaton:
    """A deterministic automaton over bytes; states are numbered from 0, which is the start.

    ``edges[state][byte]`` is the next state and the event of going there. ``tail[state]`` is the
    length of the longest way to the end that starts nothing more (no M, no N), in bytes, and
    ``open_points[state]`` the points that this way still finishes (0 or 1).
    """

    edges: tuple[Mapping[int, tuple[int, Event]], ...]
    accepting: frozenset[int]
    tail: tuple[int, ...]
    open_points: tuple[int, ...]


class _Builder:
    """States and edges under construction; every method returns the state it leads to."""

    def __init__(self) -> None:
        self.edges: list[dict[int, tuple[int, Event]]] = []
        self.start, self.end, self.dot = self.state(), self.state(), self.state()
        self.edge(self.end, ".", self.dot)

    def state(self) -> int:
        self.edges.append({})
        return len(self.edges) - 1

    def edge(self, source: int, byte: str, to: int | None = None, event: Event = "") -> int:
        target = self.state() if to is None else to
        self.edges[source][ord(byte)] = (target, event)
        return target

    def number(self, source: int, after: str, to: int, event: Event = "") -> None:
        """``0.d``, ``0.dd``, ``0.ddd`` or ``1.0``, then the byte that ends it."""
        digits = self.edge(self.edge(source, "0"), ".")
        for _ in range(3):
            following = self.state()
            for digit in "0123456789":
                self.edge(digits, digit, following)
            digits = following
            self.edge(digits, after, to, event)
        one = self.edge(self.edge(self.edge(source, "1"), "."), "0")
        self.edge(one, after, to, event)

    def numbers(self, source: int, count: int, to: int, event: Event = "") -> None:
        """``count`` numbers with ``, `` between them, then ``]``."""
        for _ in range(count - 1):
            comma = self.state()
            self.number(source, ",", comma)
            source = self.edge(comma, " ")
        self.number(source, "]", to, event)

    def build(self) -> Automaton:
        ways = [_longest_way(self.edges, state) for state in range(len(self.edges))]
        return Automaton(
            edges=tuple(self.edges),
            accepting=frozenset((self.end, self.dot)),
            tail=tuple(length for length, _ in ways),
            open_points=tuple(points for _, points in ways),
        )


def _longest_way(edges: list[dict[int, tuple[int, Event]]], state: int) -> tuple[int, int]:
    """Bytes and points on the longest way to the end without M and N; that graph has no cycle and
    is at most some 40 edges deep."""
    ways = [
        (length + 1, points + (event == "P"))
        for target, event in set(edges[state].values())
        if event not in ("M", "N")
        for length, points in [_longest_way(edges, target)]
    ]
    return max(ways, default=(0, 0))


def _region() -> Automaton:
    """``[]`` or parts of points: ``[[[x, y], [x, y]], [[x, y]]]``."""
    b = _Builder()
    whole = b.edge(b.start, "[")
    b.edge(whole, "]", b.end)
    part = b.edge(whole, "[")
    point = b.edge(part, "[")
    after_point, after_part = b.state(), b.state()
    b.numbers(point, 2, after_point, "P")
    b.edge(b.edge(b.edge(after_point, ",", event="M"), " "), "[", point)
    b.edge(after_point, "]", after_part, "C")
    b.edge(b.edge(b.edge(after_part, ",", event="N"), " "), "[", part)
    b.edge(after_part, "]", b.end)
    return b.build()


def _items(numbers: int) -> Automaton:
    """``[]``, one bare item ``[x, y]`` or a list of items ``[[x, y], [x, y]]``."""
    b = _Builder()
    whole = b.edge(b.start, "[")
    b.edge(whole, "]", b.end)
    b.numbers(whole, numbers, b.end)
    item, after_item = b.edge(whole, "["), b.state()
    b.numbers(item, numbers, after_item, "P")
    b.edge(b.edge(b.edge(after_item, ",", event="M"), " "), "[", item)
    b.edge(after_item, "]", b.end)
    return b.build()


@cache
def automaton(target: Target) -> Automaton:
    """The automaton of a target's answers, without any budget.

    >>> len(automaton("region").edges)
    30

    Raises ValueError for ``text``, whose answers have no grammar.
    """
    match target:
        case "region":
            return _region()
        case "box":
            return _items(4)
        case "point":
            return _items(2)
    raise ValueError(f"answers of target {target!r} have no grammar")


def item_bounds(target: Target, budget: Budget) -> tuple[int, int | None, int | None]:
    """What the events count: least points per part, bound on P, bound on C (None: no bound)."""
    if target == "region":
        return budget.min_points, budget.max_points, budget.max_parts
    return 1, budget.max_points if target == "point" else budget.max_parts, None


def least_max_tokens(target: Target, min_points: int = 3) -> int:
    """The smallest ``max_tokens`` in which any shortest answer closes, however it is spelled.

    >>> least_max_tokens("region"), least_max_tokens("region", 1), least_max_tokens("point")
    (52, 20, 18)
    """
    extra = min_points - 1 if target == "region" else 0
    return automaton(target).tail[0] + 1 + POINT_BYTES * extra
