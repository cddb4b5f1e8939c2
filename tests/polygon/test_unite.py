"""Region -> polygons without overlap, judged by shapely and by the rasteriser."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from simpleseg_polygon.geometry import Box, ImageSize, Point, Region
from simpleseg_polygon.raster import region_to_mask
from simpleseg_polygon.unite import Polygon, TooComplexError, one_ring, unite

GRID = 1000
BOW_TIE = (Point(0, 0), Point(1, 1), Point(1, 0), Point(0, 1))
# Runs around twice: the middle, with winding number 2, belongs to it.
TWICE_AROUND = tuple(
    Point(x, y)
    for x, y in [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0.2), (0.8, 0.2), (0.8, 0.8), (0.2, 0.8)]
)


@st.composite
def regions(draw: st.DrawFn) -> Region:
    """Scribbles of a few parts; on coarse steps, many vertices and edges coincide."""
    steps = draw(st.sampled_from([4, 8, 25, GRID]))
    share = st.integers(0, steps).map(lambda k: k / steps)
    ring = st.lists(st.builds(Point, share, share), min_size=1, max_size=14).map(tuple)
    return Region(tuple(draw(st.lists(ring, max_size=4))))


def to_shapely(polygons: list[Polygon]) -> shapely.MultiPolygon:
    return shapely.MultiPolygon([(polygon.outline, polygon.holes) for polygon in polygons])


def distance_from_outlines(region: Region, xy: np.ndarray) -> np.ndarray:
    rings = [
        shapely.LinearRing([(x * GRID, y * GRID) for x, y in r]) for r in region.parts if r[2:]
    ]
    return np.asarray(shapely.distance(shapely.GeometryCollection(rings), shapely.points(xy)))


@settings(max_examples=300, deadline=None)
@given(regions())
def test_polygons_are_valid_and_cover_what_the_region_covers(region: Region) -> None:
    shape = to_shapely(unite(region, GRID, GRID))
    assert shape.is_valid, shapely.is_valid_reason(shape)
    side = 40
    rows, columns = np.mgrid[:side, :side]
    centres = np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], axis=1) * GRID / side
    covered = region_to_mask(region, ImageSize(side, side)).ravel()
    differs = centres[covered != shapely.contains_xy(shape, centres)]
    # Vertices move to the grid and crossings by half a step, in each of few rounds.
    assert len(differs) == 0 or distance_from_outlines(region, differs).max() < 1.5


@settings(max_examples=100, deadline=None)
@given(regions())
def test_outlines_run_clockwise_on_screen_and_holes_the_other_way(region: Region) -> None:
    for polygon in unite(region, GRID, GRID):
        # In shapely's frame, y grows upwards.
        assert shapely.LinearRing(polygon.outline).is_ccw
        assert not any(shapely.LinearRing(hole).is_ccw for hole in polygon.holes)


@settings(max_examples=100, deadline=None)
@given(regions())
def test_uniting_changes_nothing_more_the_second_time(region: Region) -> None:
    once = [p for p in unite(region, GRID, GRID) if not p.holes]
    parts = [tuple(Point(x / GRID, y / GRID) for x, y in p.outline) for p in once]
    for part, polygon in zip(parts, once, strict=True):
        assert unite(Region((part,)), GRID, GRID) == [polygon]


@settings(max_examples=100, deadline=None)
@given(regions())
def test_bridges_have_no_area(region: Region) -> None:
    polygons = unite(region, GRID, GRID)
    rings = [ring for polygon in polygons for ring in (polygon.outline, *polygon.holes)]
    if not rings:
        return
    joined = np.array(one_ring(rings))
    following = np.roll(joined, -1, axis=0)
    doubled = (joined[:, 0] * following[:, 1] - joined[:, 1] * following[:, 0]).sum()
    assert doubled == 2 * to_shapely(polygons).area


def test_a_region_without_overlap_keeps_its_vertices_and_their_order() -> None:
    first, second = Box(0.1, 0.1, 0.3, 0.3).ring(), Box(0.5, 0.5, 0.9, 0.9).ring()
    polygons = unite(Region((second, first)), 10, 10)
    assert [p.outline for p in polygons] == [
        ((5, 5), (9, 5), (9, 9), (5, 9)),
        ((1, 1), (3, 1), (3, 3), (1, 3)),
    ]


def test_a_part_inside_another_vanishes() -> None:
    region = Region((Box(0, 0, 1, 1).ring(), Box(0.2, 0.2, 0.4, 0.4).ring()[::-1]))
    assert len(unite(region, 10, 10)) == 1
    assert unite(region, 10, 10)[0].holes == ()


def test_parts_with_a_common_edge_become_one() -> None:
    region = Region((Box(0, 0, 0.5, 1).ring(), Box(0.5, 0, 1, 1).ring()))
    (polygon,) = unite(region, 10, 10)
    assert to_shapely([polygon]).area == 100


def test_a_bow_tie_becomes_two_triangles() -> None:
    polygons = unite(Region((BOW_TIE,)), 10, 10)
    assert sorted(len(p.outline) for p in polygons) == [3, 3]
    assert to_shapely(polygons).area == 50


def test_what_is_passed_twice_is_covered() -> None:
    (polygon,) = unite(Region((TWICE_AROUND,)), 10, 10)
    assert polygon.holes == ()
    assert to_shapely([polygon]).covers(shapely.Point(5, 5))


def test_what_parts_enclose_is_a_hole() -> None:
    frame = [(0, 0, 1, 0.2), (0, 0.8, 1, 1), (0, 0, 0.2, 1), (0.8, 0, 1, 1)]
    (polygon,) = unite(Region(tuple(Box(*box).ring() for box in frame)), 10, 10)
    assert to_shapely([polygon]).area == 100 - 36
    assert len(polygon.holes) == 1


def test_an_outline_that_touches_itself_is_taken_apart() -> None:
    # Two squares that share a corner, written as one ring.
    xy = [(0, 0), (0.5, 0), (0.5, 0.5), (1, 0.5), (1, 1), (0.5, 1), (0.5, 0.5), (0, 0.5)]
    polygons = unite(Region((tuple(Point(*p) for p in xy),)), 10, 10)
    assert [len(p.outline) for p in polygons] == [4, 4]


@pytest.mark.parametrize(
    "ring",
    [
        (),
        (Point(0.1, 0.1), Point(0.5, 0.5)),
        (Point(0.1, 0.1), Point(0.5, 0.5), Point(0.9, 0.9)),
        (Point(0.3, 0.3),) * 5,
        (Point(float("nan"), 0), Point(1, 0), Point(1, 1)),
    ],
)
def test_rings_without_area_vanish(ring: tuple[Point, ...]) -> None:
    assert unite(Region((ring,)), 100, 100) == []


def test_vertices_outside_are_moved_to_the_border() -> None:
    region = Region(((Point(-5, -1e300), Point(7, 0), Point(7, 9), Point(-5, 9)),))
    assert to_shapely(unite(region, 10, 10)).area == 100


def test_a_scribble_is_refused() -> None:
    rng = np.random.default_rng(0)
    scribble = tuple(Point(x, y) for x, y in rng.random((1000, 2)).tolist())
    with pytest.raises(TooComplexError):
        unite(Region((scribble,)), 100_000, 100_000)
