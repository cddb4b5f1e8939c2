"""Several answers to one prompt: which of them counts.

The functions compute; call them in a worker thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from simpleseg_polygon.codec import ParseWarning
from simpleseg_polygon.geometry import Box, ImageSize, Region
from simpleseg_polygon.metrics import iou
from simpleseg_polygon.raster import region_to_mask
from simpleseg_server.answers import Answer
from simpleseg_server.engines.base import EngineError

COMPARED_AT = ImageSize(256, 256)
"""Answers are compared on a grid of this size, however large the image is."""
_MARGIN = 0.25
"""Of the longer side of an object's box, added on each side of it for a second look."""
_MIN_VIEW = 0.05
_WORTHWHILE = 0.8
"""Share of the image's width and height above which a part of it shows nothing that is new."""
_SAME_OBJECT_IOU = 0.5

NOT_REFINED = ParseWarning(
    "not_refined", "the second look found another object or none, so the first answer was kept"
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
    """
    given = tuple(answer for answer in answers if isinstance(answer, Answer))
    if len(given) < 2:
        return Answers(given[0] if given else answers[0], given)
    masks = list(map(_mask, given))
    means = [
        float(np.mean([iou(mask, other) for j, other in enumerate(masks) if j != i]))
        for i, mask in enumerate(masks)
    ]
    best = int(np.argmax(means))
    return Answers(replace(given[best], agreement=means[best]), given)


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
    return bool(iou(_mask(first), _mask(second)) >= _SAME_OBJECT_IOU)


def _mask(answer: Answer) -> NDArray[np.bool_]:
    return region_to_mask(answer.region.value, COMPARED_AT)
