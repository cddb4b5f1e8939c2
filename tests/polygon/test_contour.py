"""Mask -> region, and back through the rasteriser."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from simpleseg_polygon.contour import region_from_mask, released_region_from_mask
from simpleseg_polygon.geometry import ImageSize, Point, Ring, signed_area
from simpleseg_polygon.metrics import iou
from simpleseg_polygon.raster import region_to_mask

Mask = NDArray[np.bool_]


def mask_of(*rows: str) -> Mask:
    return np.array([[character == "#" for character in row] for row in rows])


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    """Noise of any density, half of it smoothed into blobs."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    noise = rng.random((height, width))
    if draw(st.booleans()):
        noise = cv2.GaussianBlur(noise, (0, 0), 2.0).astype(np.float64)
    return np.asarray(noise < np.quantile(noise, draw(st.floats(0, 1))), np.bool_)


def hole_filled(mask: Mask) -> Mask:
    """What the background outside, flooding across edges and corners, does not reach."""
    padded = np.pad(mask.astype(np.uint8), 1)
    count, labels = cv2.connectedComponents(1 - padded, connectivity=8)
    assert count >= 2
    return np.asarray(labels != labels[0, 0], np.bool_)[1:-1, 1:-1]


def in_pixels(ring: Ring, size: ImageSize) -> list[tuple[float, float]]:
    return [(round(p.x * size.width, 6), round(p.y * size.height, 6)) for p in ring]


@settings(max_examples=100, deadline=None)
@given(masks())
def test_unsimplified_regions_give_the_hole_filled_mask_back(mask: Mask) -> None:
    size = ImageSize(*mask.shape)
    assert np.array_equal(region_to_mask(region_from_mask(mask), size), hole_filled(mask))


@settings(max_examples=100, deadline=None)
@given(masks())
def test_rings_are_clockwise_axis_parallel_and_start_at_the_upper_left(mask: Mask) -> None:
    size = ImageSize(*mask.shape)
    areas = []
    for ring in region_from_mask(mask).parts:
        vertices = in_pixels(ring, size)
        areas.append(signed_area(tuple(Point(*vertex) for vertex in vertices)))
        steps = np.diff([*vertices, vertices[0]], axis=0)
        assert ((steps == 0).sum(axis=1) == 1).all()
        turns = steps[:-1, 0] * steps[1:, 1] - steps[:-1, 1] * steps[1:, 0]
        assert (turns != 0).all()
        assert vertices[0] == min(vertices, key=lambda xy: (xy[0] + xy[1], xy[1]))
    assert all(area > 0 for area in areas)
    assert areas == sorted(areas, reverse=True)


@settings(max_examples=100, deadline=None)
@given(masks())
def test_parts_are_the_4_connected_components(mask: Mask) -> None:
    count, _ = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    assert len(region_from_mask(mask).parts) == count - 1


def test_a_large_image_side_that_is_no_power_of_two_is_exact() -> None:
    rng = np.random.default_rng(1)
    mask = cv2.GaussianBlur(rng.random((997, 1511)), (0, 0), 12) > 0.5
    assert np.array_equal(
        region_to_mask(region_from_mask(mask), ImageSize(*mask.shape)), hole_filled(mask)
    )


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (mask_of(".", "."), []),
        (mask_of("#"), [[(0, 0), (1, 0), (1, 1), (0, 1)]]),
        (  # pixels that touch at a corner are parts of their own
            mask_of("#.", ".#"),
            [[(0, 0), (1, 0), (1, 1), (0, 1)], [(1, 1), (2, 1), (2, 2), (1, 2)]],
        ),
        (
            mask_of(".#", "#."),
            [[(1, 0), (2, 0), (2, 1), (1, 1)], [(0, 1), (1, 1), (1, 2), (0, 2)]],
        ),
        (  # the hole is not followed
            mask_of("###", "#.#", "###"),
            [[(0, 0), (3, 0), (3, 3), (0, 3)]],
        ),
        (  # one outline passes the point (2, 1) twice; the start is not the topmost corner
            mask_of(".##", "##.", "#.#", "###"),
            [
                [
                    *[(1, 0), (3, 0), (3, 1), (2, 1), (2, 2), (1, 2), (1, 3), (2, 3), (2, 2)],
                    *[(3, 2), (3, 4), (0, 4), (0, 1), (1, 1)],
                ]
            ],
        ),
    ],
)
def test_small_masks_by_hand(mask: Mask, expected: list[list[tuple[int, int]]]) -> None:
    region = region_from_mask(mask)
    assert [in_pixels(ring, ImageSize(*mask.shape)) for ring in region.parts] == expected


def test_a_component_inside_a_hole_is_a_part() -> None:
    mask = np.ones((5, 5), np.bool_)
    mask[1:4, 1:4] = False
    mask[2, 2] = True
    region = region_from_mask(mask)
    assert [len(ring) for ring in region.parts] == [4, 4]


def disc(size: ImageSize, radius: float) -> Mask:
    y, x = np.mgrid[: size.height, : size.width] + 0.5
    inside = (x - size.width / 2) ** 2 + (y - size.height / 2) ** 2 < radius**2
    return np.asarray(inside, np.bool_)


def test_simplification_lowers_vertices_and_keeps_the_area() -> None:
    size = ImageSize(128, 128)
    mask = disc(size, 40)
    fine = region_from_mask(mask)
    coarse = region_from_mask(mask, epsilon_ratio=0.005, min_epsilon_px=0.8)
    assert coarse.vertex_count < fine.vertex_count / 3
    assert iou(region_to_mask(coarse, size), mask) > 0.95
    assert signed_area(coarse.parts[0]) > 0


def test_small_parts_are_dropped_except_the_largest() -> None:
    mask = mask_of("##.#.", "##..#")
    assert len(region_from_mask(mask).parts) == 3
    assert len(region_from_mask(mask, min_part_area_px=2).parts) == 1
    assert len(region_from_mask(mask, min_part_area_px=99).parts) == 1
    assert len(region_from_mask(mask, max_parts=2).parts) == 2


def test_released_convention_keeps_cv2_order_and_pixel_indices() -> None:
    mask = np.zeros((10, 20), np.bool_)
    mask[2:6, 4:11] = True
    region = released_region_from_mask(mask)
    corners = [in_pixels(ring, ImageSize(10, 20)) for ring in region.parts]
    assert corners == [[(4, 2), (4, 5), (10, 5), (10, 2)]]


def test_released_convention_may_give_rings_without_area() -> None:
    region = released_region_from_mask(mask_of("#..", "..."))
    assert region.parts == ((Point(0.0, 0.0),),)


@pytest.mark.parametrize("ratio", [0.05, 0.2, 0.9])
def test_what_is_thinner_than_the_tolerance_keeps_few_vertices(ratio: float) -> None:
    drawn = np.zeros((200, 200), np.uint8)
    cv2.line(drawn, (10, 20), (190, 170), 1, 2)
    exact = region_from_mask(drawn > 0)
    coarse = region_from_mask(drawn > 0, epsilon_ratio=ratio)
    assert 3 <= coarse.vertex_count <= 8 < exact.vertex_count
