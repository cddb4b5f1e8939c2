"""Checkpoint or server x data -> the metrics of the model card and of the benchmarks.

An evaluation asks every case for its region and its box. How answers are got is the caller's
business (``Answer``): an engine in this process, a server by HTTP, or a model in training.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from simpleseg_polygon.codec import Status, parse_boxes, parse_region
from simpleseg_polygon.geometry import Box, ImageSize, Region
from simpleseg_polygon.metrics import accuracy_at, boundary_f, box_iou, ciou, giou, iou
from simpleseg_polygon.prompts import Target
from simpleseg_polygon.raster import region_to_mask
from simpleseg_training.cases import Case, load_cases
from simpleseg_training.recombine import box_of

EVALUATION_PX = 128


@dataclass(frozen=True)
class Reply:
    """An answer and what it cost; ``forward_passes`` counts decode steps."""

    text: str
    completion_tokens: int
    forward_passes: int
    milliseconds: float


Answer = Callable[[NDArray[np.uint8], str, Target], Reply]
"""(image RGB uint8 (H, W, 3), phrase, target) -> reply."""


@dataclass(frozen=True)
class Judged:
    """A case with the answers to both of its questions."""

    case: Case
    region_reply: Reply
    box_reply: Reply
    status: Status
    mask_hw: NDArray[np.bool_]
    iou: float
    box_iou: float


def run(
    data: str,
    split: str,
    limit: int,
    answer: Answer,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, float], list[Judged]]:
    """Ask ``answer`` about the first ``limit`` cases of ``data``: (metrics, judged cases).

    ``progress`` is called with (cases done, cases in all). Metrics are those of ``metrics_of``.
    Raises ValueError for unknown data.
    """
    cases = load_cases(data, split, limit, EVALUATION_PX)
    judged = []
    for case in cases:
        region = answer(case.image_hw3, case.phrase, "region")
        box = answer(case.image_hw3, case.phrase, "box")
        judged.append(judge(case, region, box))
        if progress is not None:
            progress(len(judged), len(cases))
    return metrics_of(judged), judged


def judge(case: Case, region_reply: Reply, box_reply: Reply) -> Judged:
    """Compare one case's replies with its truth."""
    parsed = parse_region(region_reply.text)
    mask = region_to_mask(parsed.value, ImageSize(*case.mask_hw.shape))
    right_box = true_iou(case, box_reply.text, "box")
    return Judged(
        case, region_reply, box_reply, parsed.status, mask, iou(mask, case.mask_hw), right_box
    )


def true_iou(case: Case, text: str, target: Literal["region", "box"]) -> float:
    """IoU of an answer with the truth; 1 where an absent object is found nowhere."""
    if target == "region":
        mask = region_to_mask(parse_region(text).value, ImageSize(*case.mask_hw.shape))
        return iou(mask, case.mask_hw)
    boxes = parse_boxes(text).value
    if case.is_absent or not boxes:
        return float(case.is_absent and not boxes)
    return box_iou(boxes[0], box_of(case.mask_hw))


def metrics_of(judged: Sequence[Judged]) -> dict[str, float]:
    """One number per name; NaN never appears: what cannot be measured is left out.

    ``giou`` is the mean IoU of regions, ``ciou`` the cumulative one, ``box_acc50`` the share of
    boxes with IoU above 0.5. ``empty_recall`` is the share of absent phrases answered with the
    empty region, ``false_empty`` the share of present ones. ``baseline_*`` are mean IoUs of always
    answering the whole frame, a centred box of half the side, and the true box.
    """
    present = [one for one in judged if not one.case.is_absent]
    absent = [one for one in judged if one.case.is_absent]
    ious = [one.iou for one in judged]
    tokens = sum(one.region_reply.completion_tokens for one in judged)
    passes = sum(one.region_reply.forward_passes for one in judged)
    metrics = {
        "n": float(len(judged)),
        "giou": giou(ious),
        "ciou": ciou((one.mask_hw, one.case.mask_hw) for one in judged),
        "acc50": accuracy_at(ious, 0.5),
        "box_acc50": accuracy_at([one.box_iou for one in judged], 0.5),
        "boundary_f": giou([boundary_f(one.mask_hw, one.case.mask_hw) for one in judged]),
        "false_empty": _share(one.status == "empty" for one in present),
        "tokens_per_answer": tokens / len(judged),
        "p50_ms": float(np.median([one.region_reply.milliseconds for one in judged])),
    }
    if absent:
        metrics["empty_recall"] = _share(one.status == "empty" for one in absent)
    if passes:
        metrics["tokens_per_step"] = tokens / passes
        metrics["steps_per_token"] = passes / tokens
    for name, baseline in _BASELINES.items() if present else ():
        metrics[f"baseline_{name}"] = giou(
            [iou(_box_mask(baseline(one.case), one.case), one.case.mask_hw) for one in present]
        )
    return metrics


def _share(flags: Iterable[bool]) -> float:
    collected = list(flags)
    return sum(collected) / len(collected) if collected else 0.0


_BASELINES: dict[str, Callable[[Case], Box]] = {
    "frame": lambda case: Box(0.0, 0.0, 1.0, 1.0),
    "centre_box": lambda case: Box(0.25, 0.25, 0.75, 0.75),
    "true_box": lambda case: box_of(case.mask_hw),
}


def _box_mask(box: Box, case: Case) -> NDArray[np.bool_]:
    return region_to_mask(Region((box.ring(),)), ImageSize(*case.mask_hw.shape))
