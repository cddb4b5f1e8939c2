"""Region -> runs against tests of every pixel centre that share no code with it."""

import doctest
import io
import math
import time
import tracemalloc
from math import isfinite as finite
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from simpleseg_polygon import contour, metrics, raster, rle
from simpleseg_polygon.geometry import ImageSize, Point, Region
from simpleseg_polygon.raster import region_area_px, region_to_mask, region_to_rle, region_to_runs
from simpleseg_polygon.rle import mask_to_png

Numbers = NDArray[np.int64] | NDArray[np.float64]
Vertices = list[tuple[float, float]]


def region_of(*rings: Vertices) -> Region:
    return Region(tuple(tuple(Point(x, y) for x, y in ring) for ring in rings))


def covered_centres(rings: list[Numbers], size: ImageSize) -> NDArray[np.bool_]:
    """The definition, pixel by pixel. Rings hold vertices in thousandths of a pixel."""
    y = (1000 * np.arange(size.height) + 500)[:, None]
    x = (1000 * np.arange(size.width) + 500)[None, :]
    mask = np.zeros(size, np.bool_)
    for ring in rings:
        winding = np.zeros(size, np.int64)
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            side = (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)  # > 0: right of the edge
            winding += (x0 <= x) & (x < x1) & (side >= 0)
            winding -= (x1 <= x) & (x < x0) & (side <= 0)
        mask |= winding != 0
    return mask


def usable(region: Region) -> list[Vertices]:
    """Drop what is not finite, clamp, drop rings with fewer than three vertices."""
    rings = [
        [(min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)) for x, y in ring if finite(x) and finite(y)]
        for ring in region.parts
    ]
    return [ring for ring in rings if len(ring) >= 3]


def expected_mask(region: Region, size: ImageSize, *, three_decimals: bool) -> NDArray[np.bool_]:
    """By whole numbers, thus exact, for coordinates of three decimals; else by float64."""
    per_unit = np.array([size.width, size.height])
    if three_decimals:
        whole = [np.rint(np.array(ring) * 1000).astype(np.int64) for ring in usable(region)]
        return covered_centres([ring * per_unit for ring in whole], size)
    return covered_centres([np.array(ring) * per_unit * 1000 for ring in usable(region)], size)


def random_ring(rng: np.random.Generator, kind: str) -> Vertices:
    count = int(rng.integers(0, 13))
    xy = rng.random((count, 2))
    if kind == "coarse":  # many vertices, edges and outlines on pixel centres
        xy = rng.integers(0, 9, (count, 2)) / 8
    elif kind == "degenerate":
        xy = np.repeat(xy[: count // 3 + 1], 3, axis=0) * rng.integers(0, 2, 2)
    elif kind == "wild":
        xy = (xy - 0.5) * 10.0 ** rng.integers(0, 300)
        extremes = rng.choice([np.nan, np.inf, -np.inf, 1.7e308, -0.0, 5e-324], (count, 2))
        xy = np.where(rng.random((count, 2)) < 0.2, extremes, xy)
    elif kind == "parts":
        xy = np.clip(rng.random(2) + 0.4 * (xy - 0.5), 0, 1)
    return [(float(x), float(y)) for x, y in xy]


def rounded(ring: Vertices) -> Vertices:
    def on_grid(value: float) -> float:
        return round(min(max(value, -1.0), 2.0), 3) if finite(value) else value

    return [(on_grid(x), on_grid(y)) for x, y in ring]


@pytest.mark.parametrize("kind", ["crossing", "coarse", "degenerate", "wild", "parts"])
@pytest.mark.parametrize("three_decimals", [True, False])
@pytest.mark.catalogue("G9")
def test_a_thousand_random_regions_of_each_kind_are_exact(kind: str, three_decimals: bool) -> None:
    rng = np.random.default_rng([len(kind), three_decimals])
    covered = 0
    for number in range(1000):
        rings = [random_ring(rng, kind) for _ in range(rng.integers(1, 4))]
        region = region_of(*(map(rounded, rings) if three_decimals else rings))
        size = ImageSize(*rng.integers(1, 25, 2).tolist())
        expected = expected_mask(region, size, three_decimals=three_decimals or kind == "coarse")
        actual = region_to_mask(region, size)
        assert np.array_equal(actual, expected), (number, size, region)
        covered += int(expected.sum())
    assert covered > 5_000 or kind == "degenerate"


def general_position_mask(region: Region, size: ImageSize) -> NDArray[np.bool_]:
    """The rule for centres on outlines, by moving every centre a little down and far less to the
    right: no centre is on an outline then, and a ray to the right decides. Python integers."""
    fine = 2**15
    mask = np.zeros(size, np.bool_)
    for ring in region.parts:
        xy = [(round(1000 * p.x) * size.width, round(1000 * p.y) * size.height) for p in ring]
        edges = list(zip(xy, xy[1:] + xy[:1], strict=True))
        for i, j in np.ndindex(*size):
            x, y = (1000 * j + 500) * fine**2 + 1, (1000 * i + 500) * fine**2 + fine
            winding = 0
            for (x0, y0), (x1, y1) in edges:
                if (y0 * fine**2 < y) != (y1 * fine**2 < y):
                    side = (x1 - x0) * (y - y0 * fine**2) - (y1 - y0) * (x - x0 * fine**2)
                    winding += (y1 > y0) * (side > 0) - (y1 < y0) * (side < 0)
            mask[i, j] |= winding != 0
    return mask


def test_centres_on_outlines_follow_the_stated_rule() -> None:
    rng = np.random.default_rng(5)
    for _ in range(150):
        xy = rng.integers(0, 9, (int(rng.integers(3, 8)), 2)) / 8
        region = region_of([(float(x), float(y)) for x, y in xy])
        size = ImageSize(4, 8)
        expected = general_position_mask(region, size)
        assert np.array_equal(region_to_mask(region, size), expected), region


@pytest.mark.parametrize("size", [ImageSize(3, 65_535), ImageSize(65_535, 3), ImageSize(2048, 50)])
def test_large_sides_are_exact_on_the_grid_of_three_decimals(size: ImageSize) -> None:
    rng = np.random.default_rng(6)
    for _ in range(10):
        ring = rounded([(float(x), float(y)) for x, y in rng.random((8, 2))])
        region = region_of(ring)
        expected = expected_mask(region, size, three_decimals=True)
        assert np.array_equal(region_to_mask(region, size), expected)


@pytest.mark.parametrize("side", [300, 500, 1500])
def test_outlines_through_pixel_centres_survive_binary_fractions(side: int) -> None:
    """0.035 * 300 is not 10.5 in float64, yet the centre of column 10 is on that line."""
    inexact = 0
    for thousandth in range(1, 1000):
        if thousandth * side % 1000 != 500:
            continue
        near = thousandth / 1000
        inexact += near * (side * 1000) != thousandth * side
        right = region_of([(near, 0.0), (1.0, 0.0), (1.0, 1.0), (near, 1.0)])
        lower = region_of([(0.0, near), (1.0, near), (1.0, 1.0), (0.0, 1.0)])
        covered = side - thousandth * side // 1000
        assert region_area_px(right, ImageSize(1, side)) == covered
        assert region_area_px(lower, ImageSize(side, 1)) == covered
    assert inexact > 0 or side == 500


def star(rng: np.random.Generator, centre: NDArray[np.float64], radius: float) -> Vertices:
    angles = np.sort(rng.random(24)) * 2 * np.pi
    radii = radius * (0.5 + 0.5 * rng.random(24))
    xy = centre + np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
    return [(float(x), float(y)) for x, y in np.clip(xy, 0, 1)]


def test_mean_iou_with_pycocotools_on_regions_over_32_px() -> None:
    rng = np.random.default_rng(7)
    ious = []
    for _ in range(300):
        height, width = rng.integers(64, 1200, 2).tolist()
        rings = [star(rng, rng.random(2) * 0.6 + 0.2, 0.3) for _ in range(rng.integers(1, 4))]
        ours = region_to_rle(region_of(*rings), ImageSize(height, width)).to_coco()
        flat = [[v for x, y in ring for v in (x * width, y * height)] for ring in rings]
        theirs = coco.merge(coco.frPyObjects(flat, height, width))
        _, _, box_width, box_height = coco.toBbox(theirs)
        if box_width > 32 and box_height > 32:
            ious.append(coco.iou([ours], [theirs], [0])[0, 0])
    assert len(ious) > 200
    assert np.mean(ious) >= 0.99


def test_rings_that_share_edges_share_no_pixel_and_leave_none_out() -> None:
    rng = np.random.default_rng(8)
    size = ImageSize(16, 20)
    for _ in range(100):
        cut = [(float(x), k / 6) for k, x in enumerate(rng.integers(0, 21, 7) / 20)]
        left = region_of([(0.0, 0.0), *cut, (0.0, 1.0)])
        right = region_of([*cut, (1.0, 1.0), (1.0, 0.0)])
        masks = region_to_mask(left, size).astype(int) + region_to_mask(right, size)
        assert (masks == 1).all()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60))
def test_blocks_of_columns_change_nothing(seed: int, crossings_per_block: int) -> None:
    rng = np.random.default_rng(seed)
    region = region_of(random_ring(rng, "crossing"), random_ring(rng, "parts"))
    size = ImageSize(*rng.integers(1, 40, 2).tolist())
    whole = region_to_runs(region, size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raster, "_CROSSINGS_PER_BLOCK", crossings_per_block)
        assert np.array_equal(region_to_runs(region, size), whole)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_runs_increase_strictly_and_orientation_and_start_do_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ring = random_ring(rng, "crossing")
    size = ImageSize(*rng.integers(1, 40, 2).tolist())
    runs = region_to_runs(region_of(ring), size)
    assert (np.diff(runs) > 0).all()
    assert len(runs) % 2 == 0
    turned = ring[len(ring) // 2 :] + ring[: len(ring) // 2]
    assert np.array_equal(region_to_runs(region_of(turned), size), runs)
    assert np.array_equal(region_to_runs(region_of(ring[::-1]), size), runs)


def test_parts_of_opposite_orientation_are_united() -> None:
    square = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
    assert region_area_px(region_of(square, square[::-1]), ImageSize(4, 4)) == 16


@pytest.mark.catalogue("G9")
def test_a_ring_that_winds_twice_stays_covered() -> None:
    square = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
    assert region_area_px(region_of(square + square), ImageSize(4, 4)) == 16


@pytest.mark.parametrize(
    "region",
    [
        Region(()),
        Region(((),)),
        region_of([(0.1, 0.1), (0.9, 0.9)]),
        region_of([(0.1, 0.1), (0.9, 0.9), (math.nan, 0.1), (0.5, math.inf)]),
        region_of([(0.5, 0.0)] * 5),
        region_of([(2.0, -1.0), (3.0, 0.5), (7.0, 9.0)]),
    ],
)
@pytest.mark.catalogue("G10", "G11")
def test_what_has_no_area_covers_nothing(region: Region) -> None:
    assert region_to_rle(region, ImageSize(3, 5)).to_coco() == {"size": [3, 5], "counts": "?"}


def test_vertices_after_the_limit_on_columns_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    square = [(0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)]
    other = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
    region, size = region_of(square, other), ImageSize(4, 4)
    for limit, area in [(12, 16), (11, 13), (7, 8), (4, 8), (3, 4), (1, 0)]:
        monkeypatch.setattr(raster, "MAX_COLUMNS_PASSED", limit)
        assert region_area_px(region, size) == area, limit


def test_the_limit_does_not_count_ways_between_parts() -> None:
    size, rng = ImageSize(4, 8000), np.random.default_rng(10)
    columns = rng.choice(8000, 3000, replace=False) / 8000
    pixels = [[(x, 0.0), (x + 1 / 8000, 0.0), (x + 1 / 8000, 0.25), (x, 0.25)] for x in columns]
    assert np.abs(np.diff(columns)).sum() * 8000 > raster.MAX_COLUMNS_PASSED
    assert region_area_px(region_of(*pixels), size) == 3000


@pytest.mark.catalogue("G12")
def test_a_hostile_ring_takes_bounded_memory_and_time() -> None:
    rng = np.random.default_rng(9)
    region = region_of([(float(x), float(y)) for x, y in rng.random((20_000, 2))])
    tracemalloc.start()
    started = time.perf_counter()
    runs = region_to_runs(region, ImageSize(8192, 8192))
    seconds = time.perf_counter() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(runs) > 0
    assert peak < 300e6
    assert seconds < 20  # without the limit 55 million crossings


@pytest.mark.parametrize("size", [ImageSize(0, 4), ImageSize(4, 0), ImageSize(-1, 4)])
def test_sizes_must_be_positive(size: ImageSize) -> None:
    with pytest.raises(ValueError, match="positive"):
        region_to_rle(Region(()), size)


def test_png_is_readable_and_one_bit() -> None:
    mask = np.random.default_rng(0).random((7, 13)) < 0.5
    image = Image.open(io.BytesIO(mask_to_png(mask)))
    assert image.mode == "1"
    assert np.array_equal(np.array(image), mask)


@pytest.mark.parametrize("module", [contour, metrics, raster, rle])
def test_examples_in_docstrings(module: ModuleType) -> None:
    outcome = doctest.testmod(module)
    assert outcome.attempted > 0
    assert outcome.failed == 0
