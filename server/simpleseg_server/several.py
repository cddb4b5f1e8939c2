"""Several answers to one prompt: which of them counts.

The functions compute; call them in a worker thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from simpleseg_polygon.codec import ParseWarning
from simpleseg_polygon.geometry import Box, ImageSize, Region
from simpleseg_polygon.metrics import iou
from simpleseg_polygon.raster import region_to_mask
from simpleseg_server.answers import Answer
from simpleseg_server.engines.base import EngineError

COMPARED_AT = ImageSize(256, 256)
"""Two answers are compared on a grid of this size over the box around both."""
_MARGIN = 0.25
"""Of the longer side of an object's box, added on each side of it for a second look."""
_MIN_VIEW = 0.05
_WORTHWHILE = 0.8
"""Share of the image's width and height above which a part of it shows nothing that is new."""
_SAME_OBJECT_IOU = 0.5
_LEAST = 1e-6

SAMPLES_LEFT_OUT = "samples_left_out"
NOT_REFINED = ParseWarning(
    "not_refined",
    "the second look found another object or none, or was not finished: the first answer was kept",
)


@dataclass(frozen=True)
class Answers:
    """All answers to one prompt and the one that counts; the engine's error where there is none."""

    chosen: Answer | EngineError
    given: tuple[Answer, ...]
    notes: tuple[ParseWarning, ...] = ()

    @classmethod
    def only(cls, answer: Answer | EngineError) -> "Answers":
        return cls(answer, (answer,) if isinstance(answer, Answer) else ())


def consensus(answers: Sequence[Answer | EngineError]) -> Answers:
    """Chosen is the answer with the highest mean IoU with the others, which is its ``agreement``;
    the first of equals. Empty answers agree with each other entirely, with others not at all.

    Compared are the whole ones; where there is none, those that were cut; else the unreadable. What
    is left out is told in a note.
    """
    given = tuple(answer for answer in answers if isinstance(answer, Answer))
    compared = _soundest(given)
    notes = _left_out(len(answers) - len(compared), len(answers)) if compared else ()
    if len(compared) < 2:
        return Answers(compared[0] if compared else answers[0], given, notes)
    means = [
        float(np.mean([_common_share(one, other) for other in compared if other is not one]))
        for one in compared
    ]
    best = int(np.argmax(means))
    return Answers(replace(compared[best], agreement=means[best]), given, notes)


def _soundest(answers: Sequence[Answer]) -> list[Answer]:
    """The whole answers, or else the best there are."""
    ranks = [_rank(answer) for answer in answers]
    return [answer for answer, rank in zip(answers, ranks, strict=True) if rank == min(ranks)]


def _rank(answer: Answer) -> int:
    """
    >>> from simpleseg_server.engines.base import Usage
    >>> cost = Usage(1, 1, 1, 0, 0, 0)
    >>> texts = ("[].", "stop"), ("[[[0.1, 0.2]", "length"), ("well", "stop")
    >>> [_rank(Answer(text, (), reason, cost, 0)) for text, reason in texts]
    [0, 1, 2]
    """
    if answer.finish_reason != "stop":
        return 1
    return {"ok": 0, "empty": 0, "truncated": 1, "invalid": 2}[answer.region.status]


def _left_out(count: int, of: int) -> tuple[ParseWarning, ...]:
    message = f"{count} of {of} answers failed, were cut or unreadable, and were not compared"
    return (ParseWarning(SAMPLES_LEFT_OUT, message),) if count else ()


def view_around(region: Region) -> Box | None:
    """The part of an image that is worth a second look: the region with a margin, in the image's
    own proportions. None for nothing found, and for what fills the image anyway.

    >>> from simpleseg_polygon.geometry import Point
    >>> small = Region(((Point(0.4, 0.4), Point(0.6, 0.4), Point(0.6, 0.6)),))
    >>> [round(value, 3) for value in view_around(small)]
    [0.35, 0.35, 0.65, 0.65]
    """
    box = region.bounding_box()
    if box is None:
        return None
    side = max(box.x1 - box.x0, box.y1 - box.y0) * (1 + 2 * _MARGIN)
    side = max(_MIN_VIEW, side)
    if side > _WORTHWHILE:
        return None
    x0 = _within((box.x0 + box.x1 - side) / 2, side)
    y0 = _within((box.y0 + box.y1 - side) / 2, side)
    return Box(x0, y0, x0 + side, y0 + side)


def _within(start: float, length: float) -> float:
    return min(max(start, 0.0), 1.0 - length)


def is_refinement(first: Answer, second: Answer) -> bool:
    """Whether a second look shows the same object: half of the two areas is common."""
    return _common_share(first, second) >= _SAME_OBJECT_IOU


def _common_share(one: Answer, other: Answer) -> float:
    """IoU of two answers, drawn within the box around both, so that small objects count as large
    ones do. Two empty answers are the same."""
    regions = one.region.value, other.region.value
    a, b = (region.bounding_box() for region in regions)
    if a is None or b is None:
        return float(a is b)
    if a.x1 < b.x0 or b.x1 < a.x0 or a.y1 < b.y0 or b.y1 < a.y0:
        return 0.0
    x0, y0 = min(a.x0, b.x0), min(a.y0, b.y0)
    view = Box(x0, y0, max(a.x1, b.x1, x0 + _LEAST), max(a.y1, b.y1, y0 + _LEAST))
    return iou(*(region_to_mask(region.within(view), COMPARED_AT) for region in regions))
