"""Points, boxes and regions."""

import doctest

from hypothesis import given, settings
from hypothesis import strategies as st

from simpleseg_polygon import geometry
from simpleseg_polygon.geometry import Box, Point, Region, signed_area

# Multiples of 1/64 make every area below exact in binary.
coordinates = st.integers(0, 64).map(lambda value: value / 64)
rings = st.lists(st.builds(Point, coordinates, coordinates), min_size=3, max_size=10).map(tuple)

TRIANGLE = (Point(0.25, 0.25), Point(0.75, 0.25), Point(0.75, 0.75))


def test_a_ring_that_runs_clockwise_on_screen_has_positive_area() -> None:
    assert signed_area(TRIANGLE) == 0.125
    assert signed_area(TRIANGLE[::-1]) == -0.125


def test_rings_without_area() -> None:
    assert signed_area(()) == 0
    assert signed_area(TRIANGLE[:1]) == 0
    assert signed_area(TRIANGLE[:2]) == 0


@settings(max_examples=50, deadline=None)
@given(rings, st.integers(0, 9))
def test_area_depends_on_direction_but_not_on_the_start(
    ring: tuple[Point, ...], start: int
) -> None:
    start %= len(ring)
    assert signed_area(ring[start:] + ring[:start]) == signed_area(ring)
    assert signed_area(ring[::-1]) == -signed_area(ring)


def test_the_empty_region() -> None:
    empty = Region(())
    assert empty.is_empty
    assert empty.vertex_count == 0
    assert empty.bounding_box() is None


def test_a_region_of_two_parts() -> None:
    other = (Point(0.0, 0.5), Point(0.125, 0.5), Point(0.125, 1.0), Point(0.0, 1.0))
    region = Region((TRIANGLE, other))
    assert not region.is_empty
    assert region.vertex_count == 7
    assert region.bounding_box() == Box(0.0, 0.25, 0.75, 1.0)


@settings(max_examples=50, deadline=None)
@given(st.lists(rings, min_size=1, max_size=3))
def test_the_bounding_box_touches_the_outermost_vertices(parts: list[tuple[Point, ...]]) -> None:
    box = Region(tuple(parts)).bounding_box()
    assert box is not None
    vertices = [point for ring in parts for point in ring]
    assert all(box.x0 <= x <= box.x1 and box.y0 <= y <= box.y1 for x, y in vertices)
    assert {box.x0, box.x1} <= {x for x, _ in vertices}
    assert {box.y0, box.y1} <= {y for _, y in vertices}


def test_examples() -> None:
    outcome = doctest.testmod(geometry)
    assert outcome.attempted > 0
    assert outcome.failed == 0
