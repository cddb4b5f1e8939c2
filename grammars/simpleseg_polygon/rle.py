"""Runs of covered pixels and their COCO form.

``Runs`` hold a mask as an int64 array ``start, end, start, end, ...`` of half-open pixel ranges. It
is strictly increasing, and pixel (row i, column j) of an image of height H has index ``j * H + i``:
columns first, as COCO counts. Memory follows the outline of the mask, not its area.
"""

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simpleseg_polygon.geometry import ImageSize

Runs = NDArray[np.int64]

_MAX_CHARACTERS_PER_COUNT = 12  # 60 bits: no overflow of int64 from hostile strings


@dataclass(frozen=True)
class Rle:
    """A mask in COCO's compressed run-length encoding, equal byte for byte to pycocotools'.

    ``counts`` is the compressed string; ``size`` is (height, width) in pixels.

    >>> mask_to_rle(np.eye(2, dtype=bool)).to_coco()
    {'size': [2, 2], 'counts': '0120'}
    """

    size: ImageSize
    counts: str

    def to_coco(self) -> dict[str, Any]:
        """The JSON form: ``{"size": [height, width], "counts": str}``."""
        return {"size": [self.size.height, self.size.width], "counts": self.counts}

    @staticmethod
    def from_coco(coco: Mapping[str, Any]) -> "Rle":
        """Read COCO's form; ``counts`` may be str, bytes or an uncompressed list of numbers.

        Raises ValueError if the counts are malformed or do not add up to height * width.
        """
        size = _checked_size(coco["size"])
        counts = coco["counts"]
        if isinstance(counts, bytes):
            counts = counts.decode("latin-1")
        if not isinstance(counts, str):
            counts = _compress(_checked_counts(counts))
        rle = Rle(size, counts)
        rle_to_runs(rle)
        return rle


def runs_to_rle(runs: Runs, size: ImageSize) -> Rle:
    """
    >>> runs_to_rle(np.array([1, 3]), ImageSize(2, 2)).counts
    '121'
    """
    return Rle(size, _compress(_counts(runs, size.height * size.width)))


def rle_to_runs(rle: Rle) -> Runs:
    """The covered ranges of an RLE.

    Raises ValueError if the counts are malformed or do not add up to height * width.
    """
    counts = _decompress(rle.counts)
    total = rle.size.height * rle.size.width
    # Compared one by one, so that hostile counts cannot overflow the sum.
    if len(counts) == 0 or counts.min() < 0 or counts.max() > total:
        raise ValueError("RLE counts must lie between 0 and the number of pixels")
    bounds = np.cumsum(counts)
    if bounds[-1] != total or (bounds[1:] < bounds[:-1]).any():
        raise ValueError("RLE counts do not add up to height * width")
    if len(counts) % 2:
        bounds = bounds[:-1]
    return _without_empty(bounds)


def _without_empty(bounds: NDArray[np.int64]) -> Runs:
    """Drop empty ranges and gaps; a position named twice toggles the mask twice."""
    if (bounds[1:] > bounds[:-1]).all():
        return bounds
    positions, times = np.unique(bounds, return_counts=True)
    return np.asarray(positions[times % 2 == 1])


def mask_to_runs(mask_hw: NDArray[np.bool_]) -> Runs:
    """
    >>> mask_to_runs(np.array([[False, True], [True, True]])).tolist()
    [1, 4]
    """
    columns = np.ascontiguousarray(np.asarray(mask_hw, np.bool_).T).ravel()
    changes = np.flatnonzero(columns[1:] != columns[:-1]) + 1
    first = [0] if columns[:1].any() else []
    last = [columns.size] if columns[-1:].any() else []
    return np.concatenate([first, changes, last]).astype(np.int64)


def runs_to_mask(runs: Runs, size: ImageSize) -> NDArray[np.bool_]:
    """The dense mask: bool of shape (height, width), rows contiguous."""
    counts = _counts(runs, size.height * size.width)
    covered = (np.arange(len(counts)) % 2).astype(np.bool_)
    columns = np.repeat(covered, counts).reshape(size.width, size.height)
    return np.ascontiguousarray(columns.T)


def mask_to_rle(mask_hw: NDArray[np.bool_]) -> Rle:
    """COCO RLE of a bool mask of shape (H, W); law: ``rle_to_mask(mask_to_rle(m)) == m``."""
    height, width = mask_hw.shape
    return runs_to_rle(mask_to_runs(mask_hw), ImageSize(height, width))


def rle_to_mask(rle: Rle) -> NDArray[np.bool_]:
    """The dense mask of an RLE: bool of shape ``rle.size``. Raises ValueError if malformed."""
    return runs_to_mask(rle_to_runs(rle), rle.size)


def runs_area(runs: Runs) -> int:
    """Number of covered pixels.

    >>> runs_area(np.array([1, 3, 7, 8]))
    3
    """
    return int(runs[1::2].sum() - runs[::2].sum())


def runs_box(runs: Runs, size: ImageSize) -> tuple[int, int, int, int] | None:
    """Pixel box ``(x0, y0, x1, y1)`` around the covered pixels, x1 and y1 exclusive; None if none.

    >>> runs_box(np.array([1, 2, 5, 7]), ImageSize(4, 3))
    (0, 1, 2, 3)
    """
    if len(runs) == 0:
        return None
    height = size.height
    first, last = runs[::2], runs[1::2] - 1
    x0, x1 = int(first[0]) // height, int(last[-1]) // height + 1
    if (first // height != last // height).any():  # such a run touches the lower and upper border
        return x0, 0, x1, height
    return x0, int((first % height).min()), x1, int((last % height).max()) + 1


def union_runs(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> Runs:
    """The union of the ranges ``starts[k]:ends[k]``, which may overlap and come in any order.

    >>> union_runs(np.array([4, 0, 1]), np.array([6, 2, 4])).tolist()
    [0, 6]
    """
    # Stable sorting takes almost no time where few sorted lists follow one another.
    starts, ends = np.sort(starts, kind="stable"), np.sort(ends, kind="stable")
    # Before the k-th start lies a gap exactly if all k ranges begun by then have ended.
    gaps = np.flatnonzero(ends[:-1] < starts[1:])
    runs = np.empty(2 * (len(gaps) + min(len(starts), 1)), np.int64)
    if len(runs):
        runs[0], runs[-1] = starts[0], ends[-1]
        runs[2::2], runs[1:-1:2] = starts[gaps + 1], ends[gaps]
    return runs


def _counts(runs: Runs, total: int) -> NDArray[np.int64]:
    """Lengths of uncovered, covered, uncovered, ... ranges; only the first may be zero."""
    bounds = np.empty(len(runs) + 2, np.int64)
    bounds[0], bounds[1:-1], bounds[-1] = 0, runs, total
    counts = bounds[1:] - bounds[:-1]
    return counts[:-1] if len(runs) and runs[-1] == total else counts


def _compress(counts: NDArray[np.int64]) -> str:
    """COCO's string: from the fourth count on the difference to the count two before; in groups of
    five bits, low ones first, the last one's top bit being the sign; 32 is added where more groups
    follow and 48 everywhere (cocodataset/cocoapi, common/maskApi.c, ``rleToString``)."""
    values = counts.copy()
    values[3:] -= counts[1:-2]
    longest = int(max(values.max(), ~values.min())).bit_length() // 5 + 1
    characters = np.zeros((len(counts), longest), np.uint8)
    which = np.arange(len(counts))  # counts that are not finished
    for k in range(longest):
        groups = values & 31
        values >>= 5
        more = values != -(groups >> 4)
        characters[which, k] = groups + 32 * more + 48
        longer = np.flatnonzero(more)
        which, values = which[longer], values[longer]
    return characters.tobytes().translate(None, b"\0").decode("ascii")


def _decompress(text: str) -> NDArray[np.int64]:
    """Counts of a COCO string, the inverse of ``_compress``. Raises ValueError if malformed."""
    if not text or not text.isascii():
        raise ValueError("RLE counts must be a non-empty ASCII string")
    characters = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(characters & 32 == 0)  # of each count
    if characters.min() < 0 or characters.max() > 63 or characters[-1] & 32:
        raise ValueError("RLE counts hold a character outside the code or end inside a count")
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if lengths.max() > _MAX_CHARACTERS_PER_COUNT:
        raise ValueError("an RLE count is too long")
    place = np.arange(len(characters)) - np.repeat(first, lengths)
    counts = np.add.reduceat((characters & 31) << (5 * place), first)
    counts -= ((characters[last] & 16) >> 4) << (5 * lengths)
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts


def _checked_counts(counts: Sequence[int]) -> NDArray[np.int64]:
    if not counts or not all(isinstance(n, int) and 0 <= n < 2**59 for n in counts):
        raise ValueError("uncompressed RLE counts must be a list of whole numbers, none negative")
    return np.array(counts, np.int64)


def _checked_size(size_hw: Sequence[int]) -> ImageSize:
    height, width = size_hw
    if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
        raise ValueError("an RLE's size must be two positive integers, height first")
    return ImageSize(height, width)


def mask_to_png(mask_hw: NDArray[np.bool_]) -> bytes:
    """A 1-bit greyscale PNG of a bool mask of shape (H, W): white where the mask is set.

    >>> mask_to_png(np.ones((2, 3), bool))[:4]
    b'\\x89PNG'
    """
    height, width = mask_hw.shape
    rows = np.packbits(np.asarray(mask_hw, np.bool_), axis=1)
    filtered = np.pad(rows, ((0, 0), (1, 0)))  # a leading 0 in each row: no filter
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)  # 1 bit, grey
    pixels = zlib.compress(filtered.tobytes())
    chunks = _png_chunk(b"IHDR", header) + _png_chunk(b"IDAT", pixels) + _png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
