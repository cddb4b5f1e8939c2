"""Fewer vertices for the same outline."""

import cv2
import numpy as np
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from simpleseg_polygon.geometry import ImageSize, Point, Region
from simpleseg_polygon.simplify import simplify_region

SIZE = ImageSize(200, 400)
SHARE = st.integers(0, 1000).map(lambda k: k / 1000)
RINGS = st.lists(st.builds(Point, SHARE, SHARE), min_size=3, max_size=40).map(tuple)


def in_pixels(ring: tuple[Point, ...]) -> list[tuple[float, float]]:
    return [(p.x * SIZE.width, p.y * SIZE.height) for p in ring]


def blob(count: int) -> tuple[Point, ...]:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    radius = 0.3 + 0.08 * np.sin(5 * angle)
    xy = 0.5 + np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return tuple(Point(x, y) for x, y in xy.tolist())


@settings(max_examples=200, deadline=None)
@given(RINGS, st.floats(0.01, 80))
def test_left_out_vertices_are_within_the_tolerance(
    ring: tuple[Point, ...], tolerance_px: float
) -> None:
    (simple,) = simplify_region(Region((ring,)), SIZE, tolerance_px).parts
    assert len(simple) >= 3
    remaining = iter(ring)
    assert all(point in remaining for point in simple)  # a subsequence
    outline = shapely.LinearRing(in_pixels(simple))
    distances = shapely.distance(outline, shapely.points(in_pixels(ring)))
    assert distances.max() <= tolerance_px + 1e-6


@given(RINGS)
def test_no_tolerance_changes_nothing(ring: tuple[Point, ...]) -> None:
    region = Region((ring, ring[:3]))
    assert simplify_region(region, SIZE, 0.0) is region


def test_the_tolerance_is_the_same_along_both_axes() -> None:
    # A notch 4 pixels deep in the long side of a wide image, and one in the short side.
    across = (Point(0, 0.5), Point(0.5, 0.52), Point(1, 0.5), Point(0.5, 1))
    down = (Point(0.5, 0), Point(0.51, 0.5), Point(0.5, 1), Point(0, 0.5))
    for ring in (across, down):
        assert simplify_region(Region((ring,)), SIZE, 3.9).vertex_count == 4
        assert simplify_region(Region((ring,)), SIZE, 4.1).vertex_count == 3


def test_it_leaves_out_about_as_much_as_opencv() -> None:
    ring = blob(400)
    (simple,) = simplify_region(Region((ring,)), SIZE, 1.5).parts
    reference = cv2.approxPolyDP(np.array(in_pixels(ring), np.float32), 1.5, True)
    assert abs(len(simple) - len(reference)) <= 3
    assert 10 < len(simple) < 60


def test_a_ring_of_one_point_stays_a_ring() -> None:
    assert simplify_region(Region(((Point(0.5, 0.5),) * 9,)), SIZE, 5.0).vertex_count == 3
