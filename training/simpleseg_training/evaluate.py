"""Checkpoint or server x data -> the metrics of the model card and of the benchmarks.

An evaluation asks every case for its region and its box. How answers are got is the caller's
business (``Answer``): an engine in this process, a server by HTTP, or a model in training.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from simpleseg_polygon.codec import Status, parse_boxes, parse_region
from simpleseg_polygon.geometry import Box, ImageSize, Region
from simpleseg_polygon.metrics import (
    Overlap,
    accuracy_at,
    boundary_f,
    box_iou,
    cumulative_iou,
    giou,
    iou,
    overlap,
    vertex_distances,
)
from simpleseg_polygon.prompts import Target
from simpleseg_polygon.raster import region_to_mask
from simpleseg_training.cases import Case, load_cases
from simpleseg_training.contours import Contours
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


Question = Literal["res", "rec"]
"""Referring segmentation (a region), referring comprehension (a box)."""


@dataclass(frozen=True)
class Judged:
    """A case with the answers to its questions; what was not asked is None or not measured."""

    case: Case
    region_reply: Reply | None
    box_reply: Reply | None
    status: Status
    overlap: Overlap
    boundary: float
    box_iou: float
    vertices: int
    chamfer: float | None
    """Mean distance between the answer's vertices and the label's, normalised; None where one of
    them has none."""

    @property
    def iou(self) -> float:
        return self.overlap.iou


def run(
    data: str,
    split: str,
    limit: int,
    answer: Answer,
    progress: Callable[[int, int], None] | None = None,
    questions: Sequence[Question] = ("res", "rec"),
) -> tuple[dict[str, float], list[Judged]]:
    """Ask ``answer`` about the first ``limit`` cases of ``data``: (metrics, judged cases).

    ``progress`` is called with (cases done, cases in all). Metrics are those of ``metrics_of``.
    Raises ValueError for unknown data.
    """
    cases = load_cases(data, split, limit, EVALUATION_PX)
    judged = []
    for case in cases:
        image = case.image_hw3
        region = answer(image, case.phrase, "region") if "res" in questions else None
        box = answer(image, case.phrase, "box") if "rec" in questions else None
        judged.append(judge(case, region, box))
        if progress is not None:
            progress(len(judged), len(cases))
    return metrics_of(judged), judged


def judge(case: Case, region_reply: Reply | None, box_reply: Reply | None) -> Judged:
    """Compare one case's replies with its truth."""
    parsed = parse_region(region_reply.text if region_reply else "")
    truth = case.mask_hw
    mask = region_to_mask(parsed.value, ImageSize(*truth.shape))
    chamfer = vertex_distances(parsed.value, Contours().region_of(truth)).chamfer
    return Judged(
        case,
        region_reply,
        box_reply,
        parsed.status,
        overlap(mask, truth),
        boundary_f(mask, truth),
        true_iou(case, box_reply.text, "box") if box_reply else 0.0,
        parsed.value.vertex_count,
        chamfer if 0 < chamfer < math.inf else None,
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
    boxes with IoU of at least 0.5. ``empty_recall`` is the share of absent phrases answered with
    the empty region, ``false_empty`` the share of present ones. ``vertices`` is their mean number,
    ``vertex_chamfer`` the mean normalised distance to the vertices of the label. ``baseline_*`` are
    mean IoUs of always answering the whole frame, a centred box of half the side, and the true box.
    """
    metrics = {"n": float(len(judged))}
    if all(one.region_reply for one in judged):
        metrics |= _region_metrics(judged)
    if all(one.box_reply for one in judged):
        metrics["box_acc50"] = accuracy_at([one.box_iou for one in judged], 0.5)
    return metrics | _costs(judged) | _baselines(judged)


def _region_metrics(judged: Sequence[Judged]) -> dict[str, float]:
    ious = [one.iou for one in judged]
    present = [one.status == "empty" for one in judged if not one.case.is_absent]
    absent = [one.status == "empty" for one in judged if one.case.is_absent]
    distances = [one.chamfer for one in judged if one.chamfer is not None]
    metrics = {
        "giou": giou(ious),
        "ciou": cumulative_iou(one.overlap for one in judged),
        "acc50": accuracy_at(ious, 0.5),
        "boundary_f": giou([one.boundary for one in judged]),
        "false_empty": _share(present),
        "vertices": giou([float(one.vertices) for one in judged]),
    }
    if absent:
        metrics["empty_recall"] = _share(absent)
    if distances:
        metrics["vertex_chamfer"] = giou(distances)
    return metrics


def _costs(judged: Sequence[Judged]) -> dict[str, float]:
    """Of regions, or of boxes where no region was asked for."""
    replies = [reply for one in judged if (reply := one.region_reply or one.box_reply)]
    tokens = sum(reply.completion_tokens for reply in replies)
    passes = sum(reply.forward_passes for reply in replies)
    times = [reply.milliseconds for reply in replies]
    costs = {
        "tokens_per_answer": tokens / len(judged),
        "p50_ms": float(np.median(times)),
        "p95_ms": float(np.quantile(times, 0.95)),
    }
    if passes:
        costs["tokens_per_step"] = tokens / passes
        costs["steps_per_token"] = passes / tokens
    return costs


def _baselines(judged: Sequence[Judged]) -> dict[str, float]:
    present = [one.case for one in judged if not one.case.is_absent]
    return {
        f"baseline_{name}": giou(
            [iou(_box_mask(baseline(case), case), case.mask_hw) for case in present]
        )
        for name, baseline in (_BASELINES.items() if present else ())
    }


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
