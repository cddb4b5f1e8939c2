"""Lists of numbers in any text, found in time linear in its length.

Every pattern here starts at an opening bracket and reads no further than the next bracket, and the
characters that one quantifier takes cannot be taken by its neighbour (or it is possessive). So no
character is read more than a constant number of times, and nothing recurses. Numbers are decimal
with an optional sign, fraction and exponent; ``nan`` and ``inf`` are words, not numbers.
"""

import re
from dataclasses import dataclass
from itertools import islice

import numpy as np

MAX_PARTS = 256
"""Rings read from one answer; reading stops before the next one."""
MAX_LISTS = 8192
"""Innermost lists (points or boxes, usable or not) read from one answer."""

_NUMBER = r"([+-]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][+-]?[0-9]++)?)"
_INNERMOST = r"\[[^\[\]]*+\]"
_COMMA = r"\s*+,\s*+"
_SEPARATORS = r"[\s,]*+"

_RING = re.compile(rf"\[\s*+{_INNERMOST}(?:{_SEPARATORS}{_INNERMOST}){{0,{MAX_LISTS}}}")
_RING_END = re.compile(rf"{_SEPARATORS}\]")
_BETWEEN_RINGS = re.compile(r"[\s,\[\]]*+")
_EMPTY_LIST = re.compile(r"\[\s*+\]")
_LIST_START = re.compile(r"\[\s*+(?=[\[\]0-9.+-]|\Z)")
# The look-ahead rejects a list that is not closed before the costlier search for numbers begins.
_NUMBERS_OR_OTHER = {
    count: re.compile(
        r"\[(?=[^\[\]]*+\])"
        rf"(?:\s*+{_COMMA.join([_NUMBER] * count)}{_SEPARATORS}\]|[^\[\]]*+\])"
    )
    for count in (2, 4)
}


@dataclass(frozen=True)
class NumberLists:
    """The numbers of all innermost lists that hold ``count`` of them, one list after another.

    ``other_count`` innermost lists with other contents were passed over (empty ones aside);
    ``is_cut`` says that reading stopped at the limit.
    """

    numbers: tuple[float, ...]
    other_count: int
    is_cut: bool


@dataclass(frozen=True)
class RawRing:
    """The points of one list of lists; ``is_closed`` says that its own bracket was closed."""

    points: NumberLists
    is_closed: bool


@dataclass(frozen=True)
class RingScan:
    """Every ring of a text; ``has_gaps`` says that prose stands between two of them."""

    rings: tuple[RawRing, ...]
    has_gaps: bool
    is_cut: bool


def number_lists(
    text: str, count: int, *, start: int = 0, end: int | None = None, limit: int = MAX_LISTS
) -> NumberLists:
    """The innermost lists of ``count`` (2 or 4) numbers in ``text[start:end]``, at any depth.

    At most ``limit`` innermost lists of any kind are read. A number too large for a float is inf.

    >>> number_lists("at [0.5, 0.25] or [1, .5, 2].", 2)
    NumberLists(numbers=(0.5, 0.25), other_count=1, is_cut=False)
    """
    matches = _NUMBERS_OR_OTHER[count].finditer(text, start, len(text) if end is None else end)
    digits: list[str] = []
    other_count = 0
    for match in islice(matches, limit):
        if match[1] is not None:
            digits += match.groups()
        elif not match[0][1:-1].isspace() and match[0] != "[]":
            other_count += 1
    return NumberLists(tuple(map(float, digits)), other_count, next(matches, None) is not None)


def scan_rings(text: str) -> RingScan:
    """Every run of innermost lists that follows an opening bracket, whatever stands around it.

    Runs of empty lists are passed over, but count towards the limits.

    >>> scan = scan_rings("It is at [[[0.1, 0.2], [0.3, 0.4]], [[0.5, 0.6], [0.7")
    >>> [(len(ring.points.numbers) // 2, ring.is_closed) for ring in scan.rings]
    [(2, True), (1, False)]
    """
    rings: list[RawRing] = []
    has_gaps, previous_end, room = False, 0, MAX_LISTS
    for count, match in enumerate(_RING.finditer(text)):
        if count == MAX_PARTS or room <= 0:
            return RingScan(tuple(rings), has_gaps, True)
        # Its own opening bracket is left out, so that only the ring's points are innermost lists.
        first, end = match.start() + 1, match.end()
        points = number_lists(text, 2, start=first, end=end, limit=room)
        room -= text.count("[", first, end)
        if not points.numbers and not points.other_count:
            continue  # empty lists only
        if rings:
            has_gaps |= not _BETWEEN_RINGS.fullmatch(text, previous_end, match.start())
        is_closed = not points.is_cut and _RING_END.match(text, end) is not None
        rings.append(RawRing(points, is_closed))
        previous_end = end
    return RingScan(tuple(rings), has_gaps, room < 0)


def ends_open(text: str) -> bool:
    """Whether the text ends inside a list: since the first one began, a bracket was not closed.

    >>> ends_open("It is at [[[0.1, 0.2], [0.3"), ends_open("[]."), ends_open("[see below")
    (True, False, False)
    """
    first = _LIST_START.search(text)
    if first is None:
        return False
    codes = np.frombuffer(text[first.start() :].encode("ascii", "replace"), np.uint8)
    brackets = codes[(codes == ord("[")) | (codes == ord("]"))]
    steps = np.where(brackets == ord("["), np.int8(1), np.int8(-1))
    depth = steps.cumsum(dtype=np.int32)
    # Closing brackets that close nothing leave the depth at zero.
    return bool(depth[-1] > min(0, depth.min()))


def has_empty_list(text: str) -> bool:
    """
    >>> has_empty_list("It is at []."), has_empty_list("[[0.1, 0.2]]")
    (True, False)
    """
    return _EMPTY_LIST.search(text) is not None


def ends_in_list(text: str) -> bool:
    """Whether the text ends inside an innermost list that has contents.

    >>> ends_in_list("[[0.1, 0.2], [0.3"), ends_in_list("[[0.1, 0.2], [")
    (True, False)
    """
    last = text.rfind("[")
    return last > text.rfind("]") and not text[last + 1 :].isspace() and last + 1 < len(text)


def ends_in_first_point(text: str) -> bool:
    """Whether the text ends inside the first point of a ring, which then has no whole point.

    >>> ends_in_first_point("[[[0.1"), ends_in_first_point("[[[0.1, 0.2], [0.3")
    (True, False)
    """
    return ends_in_list(text) and text[: text.rfind("[")].rstrip().endswith("[")
