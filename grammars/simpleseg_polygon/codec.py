"""Text of the polygon language <-> geometry.

The text is Python's ``str`` of nested lists of floats rounded to three decimals: separator
``", "``, trailing zeros dropped, as the released data script writes it (songtianhui/SimpleSeg,
data/data.py).

Reading is total and takes linear time: any ``str`` gives a ``Parsed`` with one of four statuses.

========== ======================================================== ============================
status     the text                                                 ``value``
========== ======================================================== ============================
ok         has something usable and closes every list               what is usable
truncated  does not close a list, or is longer than the limits      what is whole; may be empty
empty      has an empty list, ``[]``, and no part, box or point     empty
invalid    has no list, or nothing usable in the lists it closes    empty
========== ======================================================== ============================

Rules, in the order in which they apply
    - Anything may stand around the lists: a wrapper sentence, a final dot, a code fence. White
      space is free, commas between lists may be missing or doubled, depth does not matter: a
      *part* is any list of points, so that ``[[x, y], ...]`` is one part. Parts of several lists
      are united (``several_lists``), as the decoder in the released README does.
    - A number is decimal with optional sign, fraction and exponent. A list that is not a point (or
      box, where boxes are read) is left out (``malformed_list``); so are ``nan`` and ``inf``, which
      are not numbers. Coordinates outside [0, 1], however huge, are clamped
      (``coordinate_clamped``). More than three decimals are kept.
    - An end vertex equal to the first is removed. A part with fewer than three distinct vertices
      is left out (``part_too_small``).
    - A part that is not closed is kept with its whole points if it has three distinct vertices
      (``part_unfinished``), else left out (``unfinished_dropped``). An unfinished box or point is
      left out.
    - The corners of a box are put in order (``corners_reordered``).
    - Reading stops after 256 parts or 8,192 innermost lists (``too_long``).
"""

from collections import Counter
from dataclasses import dataclass
from math import isnan
from typing import Generic, Literal, TypeVar, get_args, overload

from simpleseg_polygon.geometry import Box, Point, Region, Ring
from simpleseg_polygon.scanner import (
    NumberLists,
    RawRing,
    ends_in_first_point,
    ends_in_list,
    ends_open,
    has_empty_list,
    number_lists,
    scan_rings,
)

Target = Literal["region", "box", "point", "text"]
"""What a task answers with (SimpleSeg, arXiv 2601.19228, section 3)."""
TARGETS: tuple[Target, ...] = get_args(Target)

Status = Literal["ok", "empty", "truncated", "invalid"]

WarningCode = Literal[
    "coordinate_clamped",
    "corners_reordered",
    "malformed_list",
    "part_too_small",
    "part_unfinished",
    "several_lists",
    "too_long",
    "unfinished_dropped",
]
_MESSAGES: dict[WarningCode, str] = {
    "coordinate_clamped": "coordinates outside [0, 1] were clamped",
    "corners_reordered": "boxes had their corners put in order",
    "malformed_list": "lists with the wrong count or kind of numbers were left out",
    "part_too_small": "parts with fewer than three distinct vertices were left out",
    "part_unfinished": "parts that are not closed were kept with their whole points",
    "several_lists": "text stands between lists, whose parts were united",
    "too_long": "the answer exceeds the limits and its rest was not read",
    "unfinished_dropped": "an unfinished part, box or point was left out",
}

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class ParseWarning:
    """Something that reading changed or left out: ``code`` is a ``WarningCode``, ``message`` says
    what and how often, without repeating any of the text."""

    code: str
    message: str


@dataclass(frozen=True)
class Parsed(Generic[T_co]):
    """What a text holds, how it ended and what reading changed (see the module's table)."""

    value: T_co
    status: Status
    warnings: tuple[ParseWarning, ...] = ()


def format_number(value: float) -> str:
    """A coordinate clamped to [0, 1] and rounded to three decimals, without trailing zeros.

    Raises ValueError for NaN.

    >>> format_number(0.5), format_number(0.12345), format_number(1.2), format_number(-0.0)
    ('0.5', '0.123', '1.0', '0.0')
    """
    if isnan(value):
        raise ValueError("a coordinate is not a number")
    return str(round(_clamped(float(value)), 3))


def _clamped(value: float) -> float:
    if 0.0 < value < 1.0:
        return value
    return 1.0 if value > 0 else 0.0  # -0.0 becomes 0.0


def _format_list(values: tuple[float, ...]) -> str:
    return "[" + ", ".join(map(format_number, values)) + "]"


def format_point(point: Point) -> str:
    """
    >>> format_point(Point(0.5, 0.25))
    '[0.5, 0.25]'
    """
    return _format_list(point)


def format_box(box: Box) -> str:
    """
    >>> format_box(Box(0.1, 0.2, 0.3, 0.4))
    '[0.1, 0.2, 0.3, 0.4]'
    """
    return _format_list(box)


def format_region(region: Region) -> str:
    """
    >>> format_region(Region(((Point(0.1, 0.2), Point(0.5, 0.2), Point(0.5, 0.9)),)))
    '[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]]'
    """
    rings = ("[" + ", ".join(map(format_point, ring)) + "]" for ring in region.parts)
    return "[" + ", ".join(rings) + "]"


def parse_region(text: str) -> Parsed[Region]:
    """The region that a text names; law: ``parse_region(format_region(r)).value == r`` for usable
    regions on the three-decimal grid within the limits.

    >>> parsed = parse_region("It is at [[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]], [[0.3, 0.")
    >>> parsed.status, len(parsed.value.parts), [warning.code for warning in parsed.warnings]
    ('truncated', 1, ['unfinished_dropped'])
    """
    scan = scan_rings(text)
    notes: Counter[WarningCode] = Counter()
    parts = tuple(part for ring in scan.rings if (part := _part(ring, notes)) is not None)
    is_open = scan.is_cut or ends_open(text) or not all(ring.is_closed for ring in scan.rings)
    notes["several_lists"] += scan.has_gaps
    notes["too_long"] += scan.is_cut
    notes["unfinished_dropped"] += not scan.is_cut and ends_in_first_point(text)
    return _parsed(Region(parts), bool(parts), is_open, notes, text)


def _part(raw: RawRing, notes: Counter[WarningCode]) -> Ring | None:
    """The ring if it is usable; what was changed or left out goes to ``notes``."""
    notes["malformed_list"] += raw.points.other_count
    ring = _points(raw.points.numbers)
    while len(ring) > 1 and ring[-1] == ring[0]:
        ring.pop()
    if len(set(ring)) < 3:
        notes["part_too_small" if raw.is_closed else "unfinished_dropped"] += 1
        return None
    notes["coordinate_clamped"] += _count_outside(raw.points.numbers)
    notes["part_unfinished"] += not raw.is_closed
    return tuple(ring)


def _points(numbers: tuple[float, ...]) -> list[Point]:
    coordinates = list(map(_clamped, numbers))
    return list(map(Point, coordinates[0::2], coordinates[1::2]))


def _count_outside(numbers: tuple[float, ...]) -> int:
    return sum(number < 0 or number > 1 for number in numbers)


def parse_boxes(text: str) -> Parsed[tuple[Box, ...]]:
    """The boxes ``[x0, y0, x1, y1]`` in a text, bare or in lists, upper left corner first.

    >>> parse_boxes("It is at [0.1, 0.2, 0.3, 0.4].").value
    (Box(x0=0.1, y0=0.2, x1=0.3, y1=0.4),)
    """
    lists, is_open, notes = _read_lists(text, 4)
    corners = list(map(_clamped, lists.numbers))
    as_written = list(map(Box, corners[0::4], corners[1::4], corners[2::4], corners[3::4]))
    boxes = tuple(map(_ordered, as_written))
    notes["corners_reordered"] += sum(map(Box.__ne__, boxes, as_written))
    return _parsed(boxes, bool(boxes), is_open, notes, text)


def _ordered(box: Box) -> Box:
    x0, y0, x1, y1 = box
    return Box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))


def parse_points(text: str) -> Parsed[tuple[Point, ...]]:
    """The points ``[x, y]`` in a text, bare or in lists.

    >>> parse_points("[[0.5, 0.25], [0.1, 0.9]].").value
    (Point(x=0.5, y=0.25), Point(x=0.1, y=0.9))
    """
    lists, is_open, notes = _read_lists(text, 2)
    points = tuple(_points(lists.numbers))
    return _parsed(points, bool(points), is_open, notes, text)


def _read_lists(text: str, count: int) -> tuple[NumberLists, bool, Counter[WarningCode]]:
    """The lists of ``count`` numbers, whether a list is left open, and what is to be warned of."""
    lists = number_lists(text, count)
    is_open = lists.is_cut or ends_open(text)
    notes: Counter[WarningCode] = Counter()
    notes["malformed_list"] += lists.other_count
    notes["coordinate_clamped"] += _count_outside(lists.numbers)
    notes["too_long"] += lists.is_cut
    notes["unfinished_dropped"] += not lists.is_cut and is_open and ends_in_list(text)
    return lists, is_open, notes


def _parsed(
    value: T, is_usable: bool, is_open: bool, notes: Counter[WarningCode], text: str
) -> Parsed[T]:
    warnings = [ParseWarning(code, f"{_MESSAGES[code]}: {n}") for code, n in notes.items() if n]
    warnings.sort(key=lambda warning: warning.code)
    left_out = notes["malformed_list"] + notes["part_too_small"]
    status: Status
    if is_open:
        status = "truncated"
    elif is_usable:
        status = "ok"
    elif not left_out and has_empty_list(text):
        status = "empty"
    else:
        status = "invalid"
    return Parsed(value, status, tuple(warnings))


def _parse_description(text: str) -> Parsed[str]:
    words = text.strip()
    return Parsed(words, "ok" if words else "invalid")


@overload
def parse(text: str, target: Literal["region"]) -> Parsed[Region]: ...
@overload
def parse(text: str, target: Literal["box"]) -> Parsed[tuple[Box, ...]]: ...
@overload
def parse(text: str, target: Literal["point"]) -> Parsed[tuple[Point, ...]]: ...
@overload
def parse(text: str, target: Literal["text"]) -> Parsed[str]: ...
@overload
def parse(
    text: str, target: Target
) -> Parsed[Region] | Parsed[tuple[Box, ...]] | Parsed[tuple[Point, ...]] | Parsed[str]: ...
def parse(
    text: str, target: Target
) -> Parsed[Region] | Parsed[tuple[Box, ...]] | Parsed[tuple[Point, ...]] | Parsed[str]:
    """What a text says as the answer to a task with this target; ValueError for another target.

    A description (``"text"``) is the text without the white space around it, invalid if blank.

    >>> parse("[0.5, 0.25].", "point").value
    (Point(x=0.5, y=0.25),)
    """
    match target:
        case "region":
            return parse_region(text)
        case "box":
            return parse_boxes(text)
        case "point":
            return parse_points(text)
        case "text":
            return _parse_description(text)
        case _:
            raise ValueError(f"the target must be one of {', '.join(TARGETS)}")
