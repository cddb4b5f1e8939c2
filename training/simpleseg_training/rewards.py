"""Answer text x truth -> rewards in [0, 1]: overlap, distance, format, and the penalty on length.

They are computed by ``simpleseg_polygon`` alone, so that what is trained is what is evaluated. Any
text has a score; none raises.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from simpleseg_polygon.codec import (
    Target,
    format_box,
    format_point,
    format_region,
    parse_boxes,
    parse_points,
    parse_region,
)
from simpleseg_polygon.geometry import Point
from simpleseg_polygon.metrics import box_iou, iou
from simpleseg_polygon.raster import Rle, region_to_rle
from simpleseg_polygon.rle import rle_to_mask
from simpleseg_training.pairs import Truth
from simpleseg_training.train_config import Rewards

REWARDED: tuple[Target, ...] = ("region", "box")
"""Targets that rewards are defined for."""


def overlap_reward(text: str, truth: Truth) -> float:
    """IoU of the answer with the truth: of masks for a region, of boxes for a box.

    Where there is nothing to find, 1 for saying so and 0 for anything else.
    """
    if is_nowhere(truth):
        return float(says_nowhere(text))
    if truth.target == "region":
        return iou(region_to_rle(parse_region(text).value, truth.mask.size), truth.mask)
    found = parse_boxes(text).value
    return box_iou(found[0], parse_boxes(truth.answer).value[0]) if found else 0.0


def distance_reward(text: str, truth: Truth, scale: float = 0.1) -> float:
    """exp(-d / scale) for the distance d between the centroids, in shares of the image's sides.

    The paper's 'MSE distance' reward (SimpleSeg, arXiv 2601.19228, section 3.3) as a score that
    still tells far from farther. Where only one of the two is somewhere it is 0; where there is
    nothing to find, 1 for saying so.
    """
    if is_nowhere(truth):
        return float(says_nowhere(text))
    found, true = _centroid(text, truth), _true_centroid(truth)
    return math.exp(-math.dist(found, true) / scale) if found and true else 0.0


def is_nowhere(truth: Truth) -> bool:
    """Whether the right answer is that there is no such object."""
    if truth.target == "box":
        return not parse_boxes(truth.answer).value
    return mask_centroid(truth.mask) is None


def says_nowhere(text: str) -> bool:
    """Whether an answer is that there is no such object."""
    return text.strip().removesuffix(".") == "[]"


def format_reward(text: str, truth: Truth) -> float:
    """1 for an answer in the language to the letter, with or without its final dot, else 0."""
    return float(is_well_formed(text, truth.target))


def length_penalty(tokens: int, max_tokens: int) -> float:
    """Minus the share of the longest answer allowed, in [-1, 0]."""
    return -min(tokens / max_tokens, 1.0)


def is_well_formed(text: str, target: Target) -> bool:
    """Whether formatting what was understood gives the text again.

    >>> is_well_formed("[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]].", "region")
    True
    >>> is_well_formed("[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]", "region")
    False
    """
    if says_nowhere(text):
        return target in ("region", "box")
    answer = text.strip().removesuffix(".")
    if target == "region":
        region = parse_region(answer).value
        return bool(region.parts) and answer == format_region(region)
    if target == "box":
        boxes = parse_boxes(answer).value
        return len(boxes) == 1 and answer == format_box(boxes[0])
    points = parse_points(answer).value
    return len(points) == 1 and answer == format_point(points[0])


def _centroid(text: str, truth: Truth) -> Point | None:
    if truth.target == "box":
        return _box_centre(text)
    return mask_centroid(region_to_rle(parse_region(text).value, truth.mask.size))


def _true_centroid(truth: Truth) -> Point | None:
    return _box_centre(truth.answer) if truth.target == "box" else mask_centroid(truth.mask)


def _box_centre(text: str) -> Point | None:
    boxes = parse_boxes(text).value
    if not boxes:
        return None
    x0, y0, x1, y1 = boxes[0]
    return Point((x0 + x1) / 2, (y0 + y1) / 2)


def mask_centroid(mask: Rle) -> Point | None:
    """The mean of a mask's pixel centres, normalised; None for an empty mask.

    >>> from simpleseg_polygon.rle import mask_to_rle
    >>> mask_centroid(mask_to_rle(np.array([[True, True], [False, False]])))
    Point(x=0.5, y=0.25)
    """
    dense = rle_to_mask(mask)
    area = int(dense.sum())
    if not area:
        return None
    height, width = dense.shape
    x = float(dense.sum(axis=0) @ (np.arange(width) + 0.5)) / area / width
    y = float(dense.sum(axis=1) @ (np.arange(height) + 0.5)) / area / height
    return Point(x, y)


RewardFunction = Callable[..., list[float]]


def reward_functions(weights: Rewards, max_tokens: int) -> tuple[list[RewardFunction], list[float]]:
    """The rewards that have a weight, as TRL calls them, and their weights.

    TRL gives a function the completions as conversations, their token ids, and each other column of
    the data as a list; ``truth`` is the one that counts.
    """

    def iou_reward(completions: Sequence[Any], truth: Sequence[Truth], **_: Any) -> list[float]:
        return [overlap_reward(_text(c), t) for c, t in zip(completions, truth, strict=True)]

    def distance(completions: Sequence[Any], truth: Sequence[Truth], **_: Any) -> list[float]:
        return [
            distance_reward(_text(c), t, weights.distance_scale)
            for c, t in zip(completions, truth, strict=True)
        ]

    def form(completions: Sequence[Any], truth: Sequence[Truth], **_: Any) -> list[float]:
        return [format_reward(_text(c), t) for c, t in zip(completions, truth, strict=True)]

    def length(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        return [length_penalty(len(ids), max_tokens) for ids in completion_ids]

    functions: dict[str, RewardFunction] = {
        "iou": iou_reward,
        "distance": distance,
        "format": form,
        "length": length,
    }
    for name, function in functions.items():
        function.__name__ = name  # TRL's name for its records
    chosen = {name: getattr(weights, name) for name in functions if getattr(weights, name) > 0}
    return [functions[name] for name in chosen], list(chosen.values())


Score = Callable[[Sequence[str], Sequence[Truth], Sequence[Sequence[int]]], list[float]]
"""(texts, truths, token ids) -> what each answer earns in all."""


def weighted(functions: Sequence[RewardFunction], weights: Sequence[float]) -> Score:
    """The sum that GRPO makes of the rewards."""

    def score(
        texts: Sequence[str], truths: Sequence[Truth], ids: Sequence[Sequence[int]]
    ) -> list[float]:
        parts = [f(completions=texts, truth=truths, completion_ids=ids) for f in functions]
        return [
            sum(weight * value for weight, value in zip(weights, values, strict=True))
            for values in zip(*parts, strict=True)
        ]

    return score


def _text(completion: Any) -> str:
    text: str = completion if isinstance(completion, str) else completion[0]["content"]
    return text
