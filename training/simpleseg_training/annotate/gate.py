"""What is kept, and why the rest is not: every filter counts what it removes."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from simpleseg_polygon.geometry import Box, ImageSize, Region
from simpleseg_polygon.metrics import box_iou, iou
from simpleseg_polygon.raster import region_to_mask
from simpleseg_training.annotate.parts import Detection
from simpleseg_training.recombine import box_of

Filter = Literal[
    "low_score",
    "same_box",
    "empty_mask",
    "too_small",
    "too_large",
    "leaves_its_box",
    "same_mask",
    "contour_misses",
    "many_vertices",
    "no_phrase",
    "long_phrase",
    "shared_phrase",
]
Removed = Counter[Filter]
_T = TypeVar("_T")


class Candidate(NamedTuple):
    """A detection with its mask and outline."""

    detection: Detection
    mask_hw: NDArray[np.bool_]
    region: Region


@dataclass(frozen=True)
class Gate:
    """Thresholds; areas are shares of the image.

    ``box_agreement`` is the least IoU between a mask's own box and the detector's: of a segmenter
    of salient things, objects with at least 0.8 had a mean IoU of 0.69 with the truth, all together
    0.45. ``contour_iou`` is the least IoU of the outline with its mask. ``same_iou`` is what makes
    two boxes or two masks one.
    """

    score: float = 0.3
    least_area: float = 0.003
    most_area: float = 0.9
    box_agreement: float = 0.8
    contour_iou: float = 0.85
    most_vertices: int = 150
    same_iou: float = 0.7
    most_words: int = 20

    def detections(self, found: Sequence[Detection], removed: Removed) -> list[Detection]:
        """The best-scored of boxes that are one."""
        kept: list[Detection] = []
        for one in sorted(found, key=lambda d: d.score, reverse=True):
            if one.score < self.score:
                removed["low_score"] += 1
            elif any(box_iou(one.box, other.box) > self.same_iou for other in kept):
                removed["same_box"] += 1
            else:
                kept.append(one)
        return kept

    def candidates(
        self,
        found: Sequence[Detection],
        masks: Sequence[NDArray[np.bool_]],
        outline: Callable[[NDArray[np.bool_]], Region],
        removed: Removed,
    ) -> list[Candidate]:
        """Objects whose mask and outline can be trusted."""
        kept: list[Candidate] = []
        for detection, mask in zip(found, masks, strict=True):
            reason = self._mask_fault(detection.box, mask, kept)
            if reason is None:
                candidate = Candidate(detection, mask, outline(mask))
                reason = self._outline_fault(candidate)
            if reason is None:
                kept.append(candidate)
            else:
                removed[reason] += 1
        return kept

    def _mask_fault(
        self, box: Box, mask: NDArray[np.bool_], kept: Sequence[Candidate]
    ) -> Filter | None:
        if not mask.any():
            return "empty_mask"
        if mask.mean() < self.least_area:
            return "too_small"
        if mask.mean() > self.most_area:
            return "too_large"
        if box_iou(box_of(mask), box) < self.box_agreement:
            return "leaves_its_box"
        if any(iou(mask, other.mask_hw) > self.same_iou for other in kept):
            return "same_mask"
        return None

    def _outline_fault(self, candidate: Candidate) -> Filter | None:
        drawn = region_to_mask(candidate.region, ImageSize(*candidate.mask_hw.shape))
        if iou(drawn, candidate.mask_hw) < self.contour_iou:
            return "contour_misses"
        return "many_vertices" if candidate.region.vertex_count > self.most_vertices else None

    def phrased(
        self, candidates: Sequence[_T], phrases: Sequence[str], removed: Removed
    ) -> list[tuple[_T, str]]:
        """Objects with a phrase that means them alone: one that two share means neither."""
        uses = Counter(phrase.lower() for phrase in phrases)
        kept: list[tuple[_T, str]] = []
        for candidate, phrase in zip(candidates, phrases, strict=True):
            if not phrase:
                removed["no_phrase"] += 1
            elif len(phrase.split()) > self.most_words:
                removed["long_phrase"] += 1
            elif uses[phrase.lower()] > 1:
                removed["shared_phrase"] += 1
            else:
                kept.append((candidate, phrase))
        return kept
