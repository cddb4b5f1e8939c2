"""Every metric on cases worked out by hand, and its laws."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco

from simpleseg_polygon.geometry import Box, ImageSize, Point, Region
from simpleseg_polygon.metrics import (
    Overlap,
    accuracy_at,
    boundary_f,
    box_iou,
    ciou,
    cumulative_iou,
    giou,
    iou,
    overlap,
    region_iou,
    region_overlap,
    vertex_distances,
)
from simpleseg_polygon.raster import region_to_mask, region_to_rle
from simpleseg_polygon.rle import mask_to_rle

Mask = NDArray[np.bool_]
SIZE = ImageSize(10, 10)


def square(row: int, column: int, side: int) -> Mask:
    mask = np.zeros(SIZE, np.bool_)
    mask[row : row + side, column : column + side] = True
    return mask


EMPTY = square(0, 0, 0)


def rectangle(x0: float, y0: float, x1: float, y1: float) -> Region:
    return Region(((Point(x0, y0), Point(x1, y0), Point(x1, y1), Point(x0, y1)),))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (square(0, 0, 4), square(0, 0, 4), Overlap(16, 16)),
        (square(0, 0, 4), square(2, 2, 4), Overlap(4, 28)),
        (square(0, 0, 4), square(4, 4, 4), Overlap(0, 32)),
        (square(0, 0, 10), square(3, 3, 2), Overlap(4, 100)),
        (EMPTY, square(0, 0, 4), Overlap(0, 16)),
        (EMPTY, EMPTY, Overlap(0, 0)),
    ],
)
def test_overlap_of_masks_and_rles(a: Mask, b: Mask, expected: Overlap) -> None:
    assert overlap(a, b) == overlap(b, a) == expected
    assert overlap(mask_to_rle(a), mask_to_rle(b)) == expected
    assert overlap(mask_to_rle(a), b) == expected


def test_iou_by_hand() -> None:
    assert iou(square(0, 0, 4), square(2, 2, 4)) == 4 / 28
    assert iou(EMPTY, EMPTY) == 1.0
    assert iou(EMPTY, square(0, 0, 1)) == 0.0


def test_masks_of_different_sizes_are_an_error() -> None:
    with pytest.raises(ValueError, match="sizes"):
        iou(EMPTY, np.zeros((10, 11), np.bool_))
    with pytest.raises(ValueError, match="sizes"):
        boundary_f(EMPTY, np.zeros((10, 11), np.bool_))


def test_region_overlap_by_hand() -> None:
    left, middle = rectangle(0, 0, 0.5, 1), rectangle(0.25, 0, 0.75, 1)
    assert region_overlap(left, middle, ImageSize(8, 8)) == Overlap(16, 48)
    assert region_iou(left, left, SIZE) == 1.0
    assert region_iou(Region(()), Region(()), SIZE) == 1.0
    assert region_iou(Region(()), left, SIZE) == 0.0


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_iou_is_the_same_on_masks_rles_regions_and_in_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = ImageSize(*rng.integers(1, 60, 2).tolist())
    a, b = (
        Region(tuple(tuple(Point(*xy) for xy in rng.random((5, 2)).tolist()) for _ in range(count)))
        for count in rng.integers(0, 4, 2)
    )
    expected = region_iou(a, b, size)
    rle_a, rle_b = region_to_rle(a, size), region_to_rle(b, size)
    assert iou(region_to_mask(a, size), region_to_mask(b, size)) == expected
    assert iou(rle_a, rle_b) == expected
    if rle_a.counts != rle_b.counts:  # pycocotools gives 0 for two empty masks
        assert coco.iou([rle_a.to_coco()], [rle_b.to_coco()], [0])[0, 0] == pytest.approx(expected)


def test_giou_and_ciou_differ_by_the_weight_of_large_objects() -> None:
    small = (square(0, 0, 1), square(5, 5, 1))  # 0 of 2
    large = (square(0, 0, 9), square(0, 0, 9))  # 81 of 81
    assert giou([iou(*small), iou(*large)]) == 0.5
    assert ciou([small, large]) == 81 / 83
    assert ciou(iter([small, large])) == 81 / 83
    assert cumulative_iou([Overlap(0, 2), Overlap(81, 81)]) == 81 / 83


def test_ciou_counts_false_alarms_and_forgives_only_absent_answers() -> None:
    assert ciou([(EMPTY, EMPTY)]) == 1.0
    assert ciou([(EMPTY, EMPTY), (square(0, 0, 2), EMPTY)]) == 0.0
    assert ciou([]) == 1.0


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (Box(0, 0, 0.5, 0.5), Box(0, 0, 0.5, 0.5), 1.0),
        (Box(0, 0, 0.5, 0.5), Box(0.25, 0.25, 0.75, 0.75), 1 / 7),
        (Box(0, 0, 0.5, 1), Box(0.5, 0, 1, 1), 0.0),
        (Box(0, 0, 0.2, 0.2), Box(0.5, 0.5, 1, 1), 0.0),
        (Box(0, 0, 1, 1), Box(0.25, 0.25, 0.75, 0.75), 0.25),
        (Box(0.5, 0.5, 0.5, 0.5), Box(0.5, 0.5, 0.5, 0.5), 1.0),
        (Box(0.5, 0.5, 0.5, 0.5), Box(0.1, 0.5, 0.1, 0.5), 0.0),
        (Box(0.5, 0.5, 0.5, 0.5), Box(0, 0, 1, 1), 0.0),
        (Box(0.9, 0.9, 0.1, 0.1), Box(0, 0, 1, 1), 0.0),  # corners in the wrong order: no area
    ],
)
def test_box_iou_by_hand(a: Box, b: Box, expected: float) -> None:
    assert box_iou(a, b) == box_iou(b, a) == pytest.approx(expected)


def test_accuracy_counts_the_threshold_itself() -> None:
    assert accuracy_at([0.49, 0.5, 0.51, 0.0]) == 0.5
    assert accuracy_at([0.49, 0.5, 0.51, 0.0], 0.51) == 0.25


@pytest.mark.parametrize("metric", [giou, accuracy_at])
def test_means_of_nothing_are_errors(metric: object) -> None:
    assert callable(metric)
    with pytest.raises(ValueError, match="not defined"):
        metric([])


def ratio(pixels: float) -> float:
    """The tolerance that allows this many pixels in an image of SIZE."""
    return pixels / math.hypot(*SIZE)


def test_boundary_f_by_hand() -> None:
    inner, outer = square(3, 3, 4), square(2, 2, 6)  # 12 and 20 boundary pixels, one pixel apart
    assert boundary_f(inner, inner, 0.0) == 1.0
    assert boundary_f(inner, outer, 0.0) == 0.0
    # Within one pixel: every inner pixel, and the outer ones except the four corners.
    recall, precision = 1.0, 16 / 20
    assert boundary_f(outer, inner, ratio(1)) == 2 * precision * recall / (precision + recall)
    # The corners are a diagonal step away; a tolerance just over one pixel rounds up to two.
    assert boundary_f(outer, inner, ratio(1.1)) == 1.0


def test_boundary_f_ignores_what_is_inside_and_counts_the_image_border() -> None:
    full = square(0, 0, 10)
    holed = full.copy()
    holed[5, 5] = False
    assert boundary_f(full, full, 0.0) == 1.0
    precision, recall = 36 / 40, 1.0  # the hole's four neighbours are boundary too
    assert boundary_f(holed, full, 0.0) == 2 * precision * recall / (precision + recall)


def test_boundary_f_of_empty_masks() -> None:
    assert boundary_f(EMPTY, EMPTY) == 1.0
    assert boundary_f(EMPTY, square(0, 0, 3)) == boundary_f(square(0, 0, 3), EMPTY) == 0.0


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 6))
def test_boundary_f_equals_all_pairs_of_boundary_pixels(seed: int, radius_px: int) -> None:
    rng = np.random.default_rng(seed)
    size = ImageSize(*rng.integers(1, 16, 2).tolist())
    a, b = (rng.random(size) < rng.random() for _ in range(2))

    def boundary(mask: Mask) -> list[tuple[int, int]]:
        cells = {(int(i), int(j)) for i, j in np.argwhere(mask)}
        steps = [(0, 1), (1, 0), (0, -1), (-1, 0)]
        return [(i, j) for i, j in cells if any((i + u, j + v) not in cells for u, v in steps)]

    def share(pixels: list[tuple[int, int]], others: list[tuple[int, int]]) -> float:
        near = [min(math.dist(p, q) for q in others) <= radius_px for p in pixels]
        return sum(near) / len(near)

    edge_a, edge_b = boundary(a), boundary(b)
    if not edge_a or not edge_b:
        expected = float(edge_a == edge_b)
    else:
        precision, recall = share(edge_a, edge_b), share(edge_b, edge_a)
        total = precision + recall
        expected = 2 * precision * recall / total if total else 0.0
    tolerance = (radius_px - 1e-6) / math.hypot(*size) if radius_px else 0.0
    assert boundary_f(a, b, tolerance) == pytest.approx(expected)
    assert boundary_f(mask_to_rle(a), b, tolerance) == pytest.approx(expected)


def test_vertex_distances_by_hand() -> None:
    unit, shifted = rectangle(0, 0, 0.5, 0.5), rectangle(0.03, 0.04, 0.53, 0.54)
    same = vertex_distances(unit, unit)
    assert (same.a_to_b, same.b_to_a, same.hausdorff, same.chamfer) == (0, 0, 0, 0)
    near = vertex_distances(unit, shifted)
    assert near.chamfer == pytest.approx(0.05)
    assert near.hausdorff == pytest.approx(0.05)
    in_pixels = vertex_distances(unit, shifted, ImageSize(height=300, width=400))
    assert in_pixels.chamfer == pytest.approx(math.hypot(12, 12))


def test_vertex_distances_are_directed_over_all_parts() -> None:
    one = rectangle(0, 0, 0.1, 0.1)
    two = Region(one.parts + rectangle(0.5, 0, 0.6, 0.1).parts)
    distances = vertex_distances(one, two)
    assert distances.a_to_b == 0.0
    # The second square's vertices are 0.4 and 0.5 from the first one's right side.
    assert distances.b_to_a == pytest.approx((0.4 + 0.5) * 2 / 8)
    assert distances.hausdorff == pytest.approx(0.5)
    assert distances.chamfer == pytest.approx(distances.b_to_a / 2)


def test_vertex_distances_of_regions_without_vertices() -> None:
    empty = Region(())
    assert vertex_distances(empty, empty).chamfer == 0.0
    assert vertex_distances(empty, rectangle(0, 0, 1, 1)).hausdorff == math.inf


def test_vertex_distances_in_blocks_equal_all_pairs() -> None:
    rng = np.random.default_rng(0)
    xy = rng.random((2500, 2))
    a, b = (Region((tuple(Point(*p) for p in part.tolist()),)) for part in (xy[:2200], xy[2200:]))
    table = np.hypot(*(xy[:2200, None] - xy[2200:]).transpose(2, 0, 1))
    distances = vertex_distances(a, b)
    assert distances.a_to_b == pytest.approx(table.min(axis=1).mean())
    assert distances.b_to_a == pytest.approx(table.min(axis=0).mean())
    assert distances.hausdorff == max(table.min(axis=1).max(), table.min(axis=0).max())
