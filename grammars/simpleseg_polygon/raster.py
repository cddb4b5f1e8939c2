"""Region -> runs -> COCO RLE, mask or PNG, without a dense mask on the way.

For every pixel column an edge of a ring passes, one crossing is computed: the first row whose
centre lies on or below the edge. Sorted crossings with the direction of their edges give the
winding number, and with it the runs. Time and memory grow with the outline's extent in columns, not
with the area.

The rules, in this order:

1. Vertices with a NaN or infinite coordinate are dropped; the others are clamped to [0, 1].
2. Vertices are used in reading order until the paths through the rings' vertices have passed
   ``MAX_COLUMNS_PASSED`` pixel columns, back and forth, in total; the rest is dropped. Outlines of
   real objects stay far below it, and no list of vertices can hold a server up.
3. A ring with fewer than three vertices left covers nothing.
4. Vertices are moved to a grid of ``2**-20 / 1000`` pixel. Coordinates of at most three decimals
   and pixel corners thereby become exact, and float64 decides every pixel exactly for them in
   images of up to 65,535 pixels a side.
5. A pixel is covered if the winding number of a ring around its centre is not zero. A centre
   exactly on an outline is inside where the ring lies below or, on a vertical edge, to the right of
   it; so rings that share an edge share no pixel and leave none out.
"""

from itertools import chain

import numpy as np
from numpy.typing import NDArray

from simpleseg_polygon.geometry import ImageSize, Region
from simpleseg_polygon.rle import (
    Rle,
    Runs,
    mask_to_png,
    mask_to_rle,
    rle_to_mask,
    runs_area,
    runs_to_mask,
    runs_to_rle,
    union_runs,
)

__all__ = [
    "MAX_COLUMNS_PASSED",
    "Rle",
    "mask_to_png",
    "mask_to_rle",
    "region_area_px",
    "region_to_mask",
    "region_to_rle",
    "region_to_runs",
    "rle_to_mask",
]

MAX_COLUMNS_PASSED = 1 << 22
"""Limit on a region's work; 512 outlines across an image 4,096 pixels wide, there and back."""

_UNITS_PER_PIXEL = 1000  # three decimals times any whole image side is a whole number of these
_HALF_PIXEL = 500
_SNAPS_PER_UNIT = 2.0**20
_CROSSINGS_PER_BLOCK = 1 << 20  # bounds the memory to about 100 MB

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]


def region_to_rle(region: Region, size: ImageSize) -> Rle:
    """COCO RLE of a region in an image of ``size`` (height, width) pixels.

    >>> from simpleseg_polygon.geometry import Point
    >>> ring = (Point(0, 0), Point(0.5, 0), Point(0.5, 1), Point(0, 1))
    >>> region_to_rle(Region((ring,)), ImageSize(2, 4)).to_coco()
    {'size': [2, 4], 'counts': '044'}
    """
    return runs_to_rle(region_to_runs(region, size), size)


def region_to_mask(region: Region, size: ImageSize) -> NDArray[np.bool_]:
    """Dense mask of a region: bool of shape (height, width)."""
    return runs_to_mask(region_to_runs(region, size), size)


def region_area_px(region: Region, size: ImageSize) -> int:
    """Number of pixels that a region covers."""
    return runs_area(region_to_runs(region, size))


def region_to_runs(region: Region, size: ImageSize) -> Runs:
    """The covered pixel ranges of a region; total for any coordinates, see the module's rules.

    Raises ValueError if a side of ``size`` is not positive.
    """
    if size.height < 1 or size.width < 1:
        raise ValueError("image sides must be positive")
    xy_norm, lengths = _usable_vertices(region, size.width)
    if len(lengths) == 0:
        return np.empty(0, np.int64)
    scale = np.array([size.width, size.height], np.float64) * _UNITS_PER_PIXEL
    xy = np.rint(xy_norm * scale * _SNAPS_PER_UNIT) / _SNAPS_PER_UNIT
    edges = _Edges(xy, lengths)
    blocks = [edges.covered(first, last, size.height) for first, last in edges.column_blocks()]
    if edges.ring_count == len(blocks) == 1:
        return blocks[0]
    starts = np.concatenate([bounds[::2] for bounds in blocks])
    ends = np.concatenate([bounds[1::2] for bounds in blocks])
    return union_runs(starts, ends)


def _usable_vertices(region: Region, width: int) -> tuple[_Floats, _Ints]:
    """Rules 1 to 3: clamped vertices (n, 2) of all usable rings, and the rings' lengths."""
    given = np.array([len(ring) for ring in region.parts], np.int64)
    flat = chain.from_iterable(chain.from_iterable(region.parts))
    xy = np.fromiter(flat, np.float64, 2 * int(given.sum())).reshape(-1, 2)
    ring_of = np.repeat(np.arange(len(given)), given)
    finite = np.isfinite(xy).all(axis=1)
    xy, ring_of = np.clip(xy[finite], 0.0, 1.0), ring_of[finite]
    same_ring = ring_of[1:] == ring_of[:-1]
    passed = np.cumsum(np.abs(xy[1:, 0] - xy[:-1, 0]) * same_ring) * width
    used = 1 + int(np.searchsorted(passed, MAX_COLUMNS_PASSED, side="right"))
    xy, ring_of = xy[:used], ring_of[:used]
    lengths = np.bincount(ring_of, minlength=len(given))
    usable = lengths >= 3
    return xy[usable[ring_of]], lengths[usable]


class _Edges:
    """The edges of all rings, each from its left to its right end, with their column ranges.

    A column belongs to an edge if ``left x <= column centre < right x``; columns of vertical edges
    are therefore none.
    """

    def __init__(self, xy: _Floats, ring_lengths: _Ints) -> None:
        ring_ends = np.cumsum(ring_lengths)
        following = np.arange(1, len(xy) + 1)
        following[ring_ends - 1] = ring_ends - ring_lengths
        start, end = xy, xy[following]
        self.rightward = start[:, 0] < end[:, 0]
        left = np.where(self.rightward[:, None], start, end)
        right = np.where(self.rightward[:, None], end, start)
        self.x, self.y = left[:, 0], left[:, 1]
        self.dx, self.dy = right[:, 0] - self.x, right[:, 1] - self.y
        self.ring_count = len(ring_lengths)
        self.ring = np.repeat(np.arange(self.ring_count), ring_lengths)
        self.first_column = _first_centre(self.x)
        self.stop_column = _first_centre(right[:, 0])

    def column_blocks(self) -> list[tuple[int, int]]:
        """Ranges of columns that hold about ``_CROSSINGS_PER_BLOCK`` crossings each."""
        total = int((self.stop_column - self.first_column).sum())
        stop = int(self.stop_column.max())
        if total <= _CROSSINGS_PER_BLOCK:
            return [(0, stop)]
        begun = np.bincount(self.first_column, minlength=stop + 1)
        ended = np.bincount(self.stop_column, minlength=stop + 1)
        crossings_up_to = np.cumsum(np.cumsum(begun - ended))
        wanted = np.arange(_CROSSINGS_PER_BLOCK, total, _CROSSINGS_PER_BLOCK)
        cuts = np.unique([0, *(np.searchsorted(crossings_up_to, wanted) + 1), stop]).tolist()
        return list(zip(cuts[:-1], cuts[1:], strict=True))

    def covered(self, first: int, stop: int, height: int) -> _Ints:
        """Starts and ends, in turn, of every ring's runs within the columns ``first:stop``."""
        begin = np.clip(self.first_column, first, stop)
        counts = np.clip(self.stop_column, first, stop) - begin
        # One sortable number per crossing: ring, pixel index, and the direction in the lowest bit.
        pixels_per_ring = height * stop + 1
        at_begin = 2 * (self.ring * pixels_per_ring + begin * height) + self.rightward
        step = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        key = self._crossed_rows(begin, counts, step)
        key += height * step
        key *= 2
        key += np.repeat(at_begin, counts)
        crossings = key.astype(np.int64)
        crossings.sort(kind="stable")  # merges: along each edge the keys are sorted already
        bounds = _nonzero_winding(crossings)
        if self.ring_count > 1:
            ring_starts = pixels_per_ring * np.arange(self.ring_count)
            bounds_per_ring = np.diff(np.searchsorted(bounds, ring_starts), append=len(bounds))
            bounds -= np.repeat(ring_starts, bounds_per_ring)
        return bounds

    def _crossed_rows(self, begin: _Ints, counts: _Ints, step: _Ints) -> _Floats:
        """The first row whose centre is on or below each edge in the columns ``begin + step``.

        It is the ceiling of numerator / denominator, both of which are whole numbers below 2**53
        for vertices of three decimals. Works in place: fresh memory costs more than arithmetic.
        """
        x_from_left = _UNITS_PER_PIXEL * begin + _HALF_PIXEL - self.x
        at_begin = (self.y - _HALF_PIXEL) * self.dx + x_from_left * self.dy
        numerator = np.repeat(_UNITS_PER_PIXEL * self.dy, counts)
        numerator *= step
        numerator += np.repeat(at_begin, counts)
        numerator /= np.repeat(_UNITS_PER_PIXEL * self.dx, counts)
        rows: _Floats = np.ceil(numerator, out=numerator)
        return rows


def _first_centre(x: _Floats) -> _Ints:
    """The first column whose centre is at x or right of it."""
    return np.ceil((x - _HALF_PIXEL) / _UNITS_PER_PIXEL).astype(np.int64)


def _nonzero_winding(crossings: _Ints) -> _Ints:
    """Where the winding number leaves zero and returns to it, alternately.

    ``crossings`` are sorted; twice an index, plus one where the winding number grows there. It ends
    at zero in every column and ring, because rings are closed.
    """
    covered = np.cumsum(2 * (crossings & 1) - 1) != 0
    index = crossings >> 1
    settled = np.ones(len(index), np.bool_)  # by the last crossing at each index
    np.not_equal(index[1:], index[:-1], out=settled[:-1])
    index, covered = index[settled], covered[settled]
    changed = covered.copy()
    changed[1:] ^= covered[:-1]
    bounds: _Ints = index[changed]
    return bounds
