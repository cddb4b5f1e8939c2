"""Where an unfinished answer stands: what a draft goes on from."""

import re
from dataclasses import dataclass

from simpleseg_polygon.forecast import TAIL, Trail

BETWEEN_NUMBERS = b", 0."
BETWEEN_ITEMS = b"], [0."
_BETWEEN_PARTS = b"]], [[0."
_TAIL_BYTES = 18 * (TAIL + 1)  # of the vertices that a forecast looks at and the one under way
_ITEM = re.compile(rb"\[([01]\.\d+(?:, [01]\.\d+)+)\]")
_DIGITS = re.compile(rb"0\.(\d{0,3})$")


@dataclass
class Pen:
    """The part so far (None before its first vertex), the whole numbers of the item under way, in
    thousandths, the digits of the number under way (None: it is finished), and the text due before
    anything else."""

    trail: Trail | None
    item: list[int]
    digits: bytes | None
    due: bytes = b""


def read_pen(text: bytes) -> Pen | None:
    """Where a text of the language stands; None where nothing is known to follow."""
    part = text[max(text.rfind(b"[["), 0) :]
    trail = _trail(part)
    opening, closing = part.rfind(b"["), part.rfind(b"]")
    item = _numbers(part[opening + 1 :].rpartition(b",")[0]) if opening > closing else []
    under_way = _DIGITS.search(part, max(len(part) - 5, 0))
    if under_way is not None:
        return Pen(trail, item, under_way[1])
    if part.endswith(b"1.0"):
        return Pen(trail, [*item, 1000], None)
    due = _due(part)
    if due is None:
        return None
    if due in (b".0", b"0"):  # the rest of 1.0
        return Pen(trail, [*item, 1000], None, due)
    is_new_part = part.endswith((b"]],", b"]], ", b"]], ["))
    return Pen(None if is_new_part else trail, item, b"", due)


def numbers_per_item(head: bytes, text: bytes) -> int:
    """2 for vertices and points, 4 for boxes; a box where a list has not told yet. ``head`` is how
    the answer begins."""
    if head.startswith(b"[[["):
        return 2
    whole = _ITEM.search(text)
    return 4 if whole is None else whole[1].count(b",") + 1


def thousandths(digits: bytes) -> int:
    """The number that these decimals write.

    >>> thousandths(b"5"), thousandths(b"035")
    (500, 35)
    """
    return int(digits.ljust(3, b"0"))


def _trail(part: bytes) -> Trail | None:
    first = _ITEM.search(part)
    if first is None:
        return None
    items = _ITEM.findall(part, max(len(part) - _TAIL_BYTES, 0))[-TAIL:]
    tail = tuple(_vertex(item) for item in items)
    return Trail(_vertex(first[1]), tail, part.count(b"]"))


def _vertex(text: bytes) -> tuple[int, int]:
    x, y, *_ = text.split(b", ")
    return _THOUSANDTHS[x], _THOUSANDTHS[y]


def _numbers(text: bytes) -> list[int]:
    return [_THOUSANDTHS[number] for number in text.split(b", ") if number]


class _Thousandths(dict[bytes, int]):
    """Of every number that an answer has held, as its text; a few thousand at most where a model
    keeps to three decimals, which it is trained to."""

    def __missing__(self, text: bytes) -> int:
        number = 1000 if text[:1] == b"1" else thousandths(text[2:5])
        if len(text) <= _LONGEST_NUMBER:
            self[text] = number
        return number


_LONGEST_NUMBER = len(b"0.123")
_THOUSANDTHS = _Thousandths()


def _due(text: bytes) -> bytes | None:
    """The rest of the separator that the text ends within."""
    if text.endswith((b"[0", b" 0")):
        return b"."
    if text.endswith((b"[1", b" 1")):
        return b".0"
    if text.endswith((b"[1.", b" 1.")):
        return b"0"
    if text.endswith(b"[]"):
        return None
    if text.endswith(b"]") and not text.endswith(b"]]"):
        return BETWEEN_ITEMS[1:]
    for separator in (_BETWEEN_PARTS, BETWEEN_ITEMS, BETWEEN_NUMBERS):
        for length in range(len(separator) - 2, 0, -1):
            if text.endswith(separator[:length]):
                return separator[length:]
    return b"0." if text.endswith(b"[[") or text == b"[" else None
