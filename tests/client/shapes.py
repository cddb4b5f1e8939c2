"""Regions for the tests of export formats, and how far two masks may differ."""

from collections.abc import Sequence

import numpy as np
import shapely
from hypothesis import strategies as st
from numpy.typing import NDArray

from simpleseg_polygon.geometry import Box, ImageSize, Point, Region
from simpleseg_polygon.raster import region_to_mask

Mask = NDArray[np.bool_]
Rings = Sequence[Sequence[Sequence[float]]]

SIZE = ImageSize(60, 90)

_FRAME = [(0.1, 0.1, 0.9, 0.3), (0.1, 0.7, 0.9, 0.9), (0.1, 0.1, 0.3, 0.9), (0.7, 0.1, 0.9, 0.9)]
SQUARE = Region((Box(0.25, 0.25, 0.75, 0.75).ring(),))
TWO_PARTS = Region((Box(0.1, 0.1, 0.4, 0.4).ring(), Box(0.6, 0.55, 0.9, 0.9).ring()))
OVERLAPPING = Region((Box(0.1, 0.1, 0.6, 0.6).ring(), Box(0.4, 0.3, 0.9, 0.9).ring()))
WITH_HOLE = Region(tuple(Box(*box).ring() for box in _FRAME))
BOW_TIE = Region(((Point(0.1, 0.1), Point(0.9, 0.9), Point(0.9, 0.1), Point(0.1, 0.9)),))
NAMED = {
    "square": SQUARE,
    "two parts": TWO_PARTS,
    "overlapping": OVERLAPPING,
    "with a hole": WITH_HOLE,
    "bow tie": BOW_TIE,
    "empty": Region(()),
}


def scribble(count: int = 1000) -> Region:
    """A ring that crosses itself many thousand times."""
    xy = np.random.default_rng(0).random((count, 2)).tolist()
    return Region((tuple(Point(x, y) for x, y in xy),))


@st.composite
def regions(draw: st.DrawFn) -> Region:
    """Up to three parts of any vertices of three decimals, at times on a coarse grid."""
    steps = draw(st.sampled_from([5, 20, 1000]))
    share = st.integers(0, steps).map(lambda k: k / steps)
    ring = st.lists(st.builds(Point, share, share), min_size=3, max_size=9).map(tuple)
    return Region(tuple(draw(st.lists(ring, max_size=3))))


def even_odd_mask(rings: Rings, size: ImageSize = SIZE) -> Mask:
    """The union of rings in pixels, each filled by the even-odd rule at pixel centres."""
    rows, columns = np.mgrid[: size.height, : size.width] + 0.5
    mask = np.zeros(size, np.bool_)
    for ring in rings:
        inside = np.zeros(size, np.bool_)
        for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]], strict=True):
            spans = (y0 <= rows) != (y1 <= rows)
            slope = (x1 - x0) / (y1 - y0) if y1 != y0 else 0.0
            inside ^= spans & (columns < x0 + (rows - y0) * slope)
        mask |= inside
    return mask


def worst_error_px(mask: Mask, region: Region, drawn: Rings = ()) -> float:
    """How far from its outline, in pixels, a mask differs from the region's own; 0 if nowhere.

    ``drawn`` are rings in pixels whose edges, bridges too, a rasteriser paints as lines.
    """
    size = ImageSize(*mask.shape)
    row, column = np.nonzero(mask != region_to_mask(region, size))
    if len(row) == 0:
        return 0.0
    own = [[(x * size.width, y * size.height) for x, y in ring] for ring in region.parts]
    lines = shapely.GeometryCollection([shapely.LinearRing(ring) for ring in [*own, *drawn]])
    centres = shapely.points(column + 0.5, row + 0.5)
    return float(shapely.distance(lines, centres).max())


def in_pixels(points: Sequence[Sequence[float]], per_side: float = 1.0) -> list[list[float]]:
    """Points in units of ``1 / per_side`` of the sides, as pixels of an image of ``SIZE``."""
    return [[x / per_side * SIZE.width, y / per_side * SIZE.height] for x, y in points]
