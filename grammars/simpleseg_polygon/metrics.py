"""How well a region or mask fits another: one definition for reward, evaluation and benchmarks.

A mask is a bool array of shape (H, W) or an ``Rle``; both of a pair have the same size. Two empty
masks agree fully (1.0); an empty and a non-empty one do not agree at all (0.0).
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simpleseg_polygon.geometry import Box, ImageSize, Region
from simpleseg_polygon.raster import region_to_runs
from simpleseg_polygon.rle import Rle, Runs, rle_to_mask, rle_to_runs, runs_area, union_runs

Mask = NDArray[np.bool_] | Rle


class Overlap(NamedTuple):
    """Pixels in both masks and pixels in either.

    >>> Overlap(1, 4).iou, Overlap(0, 0).iou
    (0.25, 1.0)
    """

    intersection_px: int
    union_px: int

    @property
    def iou(self) -> float:
        return self.intersection_px / self.union_px if self.union_px else 1.0


def overlap(a: Mask, b: Mask) -> Overlap:
    """Intersection and union in pixels. Raises ValueError if the sizes differ.

    >>> overlap(np.array([[True, True, False]]), np.array([[False, True, True]]))
    Overlap(intersection_px=1, union_px=3)
    """
    if _size(a) != _size(b):
        raise ValueError(f"masks of different sizes: {_size(a)} and {_size(b)}")
    if isinstance(a, Rle) and isinstance(b, Rle):
        return _runs_overlap(rle_to_runs(a), rle_to_runs(b))
    dense_a, dense_b = _dense(a), _dense(b)
    both, either = np.count_nonzero(dense_a & dense_b), np.count_nonzero(dense_a | dense_b)
    return Overlap(int(both), int(either))


def region_overlap(a: Region, b: Region, size: ImageSize) -> Overlap:
    """Intersection and union in pixels of two regions in an image of ``size``, without masks."""
    return _runs_overlap(region_to_runs(a, size), region_to_runs(b, size))


def iou(a: Mask, b: Mask) -> float:
    """Intersection over union, in [0, 1]; 1 if both are empty, 0 if one is.

    >>> iou(np.array([[True, True, False]]), np.array([[False, True, True]]))
    0.3333333333333333
    """
    return overlap(a, b).iou


def region_iou(a: Region, b: Region, size: ImageSize) -> float:
    """``iou`` of two regions drawn in an image of ``size``."""
    return region_overlap(a, b, size).iou


def giou(ious: Sequence[float]) -> float:
    """Mean of per-image IoUs, as referring segmentation reports it (LISA, arXiv 2308.00692, 4.1).

    Raises ValueError if there are none.

    >>> giou([1.0, 0.5])
    0.75
    """
    if not ious:
        raise ValueError("the mean of no IoUs is not defined")
    return math.fsum(ious) / len(ious)


def ciou(pairs: Iterable[tuple[Mask, Mask]]) -> float:
    """Cumulative intersection over cumulative union of (prediction, truth) pairs; 1 if all are
    empty. Large objects weigh more than in ``giou`` (LISA, arXiv 2308.00692, 4.1).

    >>> full, half = np.ones((1, 4), bool), np.array([[True, True, False, False]])
    >>> ciou([(half, full), (full, full)])
    0.75
    """
    return cumulative_iou(overlap(a, b) for a, b in pairs)


def cumulative_iou(overlaps: Iterable[Overlap]) -> float:
    """``ciou`` of overlaps that are at hand already.

    >>> cumulative_iou([Overlap(1, 2), Overlap(2, 4)])
    0.5
    """
    intersection_px = union_px = 0
    for one in overlaps:
        intersection_px += one.intersection_px
        union_px += one.union_px
    return Overlap(intersection_px, union_px).iou


def box_iou(a: Box, b: Box) -> float:
    """IoU of two boxes as continuous areas. A box without area overlaps only its equal: 1.0.

    >>> box_iou(Box(0.0, 0.0, 0.5, 1.0), Box(0.25, 0.0, 0.75, 1.0))
    0.3333333333333333
    """
    both = _area(Box(max(a.x0, b.x0), max(a.y0, b.y0), min(a.x1, b.x1), min(a.y1, b.y1)))
    either = _area(a) + _area(b) - both
    return both / either if either > 0 else float(a == b)


def accuracy_at(ious: Sequence[float], threshold: float = 0.5) -> float:
    """Share of IoUs that reach ``threshold``. Raises ValueError if there are none.

    >>> accuracy_at([0.4, 0.5, 0.9, 1.0], 0.5)
    0.75
    """
    if not ious:
        raise ValueError("the accuracy over no IoUs is not defined")
    return sum(value >= threshold for value in ious) / len(ious)


def boundary_f(a: Mask, b: Mask, tolerance_ratio: float = 0.008) -> float:
    """F-score of boundary pixels that lie close to the other mask's boundary, in [0, 1].

    A boundary pixel is set and has a 4-neighbour that is not, or lies on the image border. Close is
    at most ``tolerance_ratio`` of the image diagonal, rounded up to whole pixels, between centres
    (F of precision and recall as in DAVIS, Perazzi et al. 2016, 0.008 as there).
    1 if both masks are empty, 0 if one is.

    >>> square = np.ones((4, 4), bool)
    >>> boundary_f(square, square, 0.0), boundary_f(square, ~square)
    (1.0, 0.0)
    """
    if _size(a) != _size(b):
        raise ValueError(f"masks of different sizes: {_size(a)} and {_size(b)}")
    size = _size(a)
    edge_a, edge_b = _boundary(_dense(a)), _boundary(_dense(b))
    if not len(edge_a) or not len(edge_b):
        return float(len(edge_a) == len(edge_b))
    radius_px = math.ceil(tolerance_ratio * math.hypot(*size))
    precision = _share_within(edge_a, edge_b, radius_px, size)
    recall = _share_within(edge_b, edge_a, radius_px, size)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


class VertexDistances(NamedTuple):
    """Distances between the vertices of two regions, in the unit of their coordinates.

    ``a_to_b`` is the mean distance from a vertex of a to the nearest vertex of b.
    """

    a_to_b: float
    b_to_a: float
    hausdorff: float

    @property
    def chamfer(self) -> float:
        """Mean of both directions."""
        return (self.a_to_b + self.b_to_a) / 2


def vertex_distances(a: Region, b: Region, size: ImageSize | None = None) -> VertexDistances:
    """Nearest-vertex distances in pixels of ``size``, or normalised without one.

    All are 0 if both regions have no vertex and infinite if one has none. They measure where
    vertices sit, not whether the areas agree: a vertex added on a straight edge changes them.

    >>> from simpleseg_polygon.geometry import Point
    >>> a = Region(((Point(0, 0), Point(1, 0), Point(1, 1)),))
    >>> b = Region(((Point(0, 0), Point(1, 0), Point(1, 1), Point(0, 1)),))
    >>> vertex_distances(a, b)
    VertexDistances(a_to_b=0.0, b_to_a=0.25, hausdorff=1.0)
    """
    scale = (size.width, size.height) if size else (1, 1)
    points_a, points_b = _vertices(a) * scale, _vertices(b) * scale
    if not len(points_a) or not len(points_b):
        distance = 0.0 if len(points_a) == len(points_b) else math.inf
        return VertexDistances(distance, distance, distance)
    nearest_b, nearest_a = _nearest(points_a, points_b), _nearest(points_b, points_a)
    farthest = max(nearest_a.max(), nearest_b.max())
    return VertexDistances(float(nearest_b.mean()), float(nearest_a.mean()), float(farthest))


def _size(mask: Mask) -> ImageSize:
    return mask.size if isinstance(mask, Rle) else ImageSize(*mask.shape)


def _dense(mask: Mask) -> NDArray[np.bool_]:
    return rle_to_mask(mask) if isinstance(mask, Rle) else np.asarray(mask, np.bool_)


def _runs_overlap(a: Runs, b: Runs) -> Overlap:
    starts, ends = np.concatenate([a[::2], b[::2]]), np.concatenate([a[1::2], b[1::2]])
    union_px = runs_area(union_runs(starts, ends))
    return Overlap(runs_area(a) + runs_area(b) - union_px, union_px)


def _area(box: Box) -> float:
    return max(box.x1 - box.x0, 0.0) * max(box.y1 - box.y0, 0.0)


def _boundary(mask_hw: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(row, column) of the boundary pixels, in row-major order; shape (n, 2)."""
    padded = np.pad(mask_hw, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.argwhere(mask_hw & ~inner)


def _share_within(
    pixels: NDArray[np.int64], others: NDArray[np.int64], radius_px: int, size: ImageSize
) -> float:
    """Share of pixels with one of the others in the disc around them.

    For every row of the disc, ``others`` (sorted) are searched for a pixel in the disc's extent.
    """
    stride = size.width + 2 * radius_px  # no extent reaches into the next row
    other_keys = others[:, 0] * stride + others[:, 1]
    found = np.zeros(len(pixels), np.bool_)
    for dy in range(-radius_px, radius_px + 1):
        reach = math.isqrt(radius_px**2 - dy**2)
        keys = (pixels[:, 0] + dy) * stride + pixels[:, 1]
        before = np.searchsorted(other_keys, keys - reach, side="left")
        found |= np.searchsorted(other_keys, keys + reach, side="right") > before
    return float(found.mean())


def _vertices(region: Region) -> NDArray[np.float64]:
    points = [point for ring in region.parts for point in ring]
    return np.array(points, np.float64).reshape(-1, 2)


def _nearest(points: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance from each point to the nearest of the others; shape (n,)."""
    nearest = np.full(len(points), np.inf)
    for start in range(0, len(points), 1024):  # bounds the memory
        difference = points[start : start + 1024, None] - others
        distance = np.hypot(difference[..., 0], difference[..., 1])
        nearest[start : start + 1024] = distance.min(axis=1)
    return nearest
