"""Mask -> region: the labels that a model learns to write.

``region_from_mask`` follows pixel edges, so that rasterising an unsimplified region gives the mask
back exactly (holes filled: the language has none). ``released_region_from_mask`` reproduces the
released data script for evaluating and training as the paper did.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from simpleseg_polygon.geometry import Point, Region, Ring


def region_from_mask(
    mask_hw: NDArray[np.bool_],
    *,
    epsilon_ratio: float = 0.0,
    min_epsilon_px: float = 0.0,
    min_part_area_px: int = 1,
    max_parts: int | None = None,
) -> Region:
    """The outer outlines of a mask's 4-connected components, clockwise, largest part first.

    ``mask_hw`` is bool of shape (H, W). Douglas-Peucker simplification removes vertices closer than
    ``max(epsilon_ratio * perimeter, min_epsilon_px)`` pixels to the outline, or than the largest
    half, quarter, ... of that which leaves three vertices; 0 keeps every corner.
    Parts smaller than ``min_part_area_px`` pixels are dropped, except the largest. Each ring starts
    at its vertex nearest the image's upper left corner (least x + y, then least y). A component
    inside a hole of another is a part of its own.

    Law: without simplification, ``region_to_mask(region_from_mask(m)) == m`` with holes filled.

    >>> region_from_mask(np.array([[False, True], [False, True]])).parts[0]
    (Point(x=0.5, y=0.0), Point(x=1.0, y=0.0), Point(x=1.0, y=1.0), Point(x=0.5, y=1.0))
    """
    height, width = mask_hw.shape
    outlines = [(_area(ring), ring) for ring in _outer_outlines(mask_hw)]
    outlines.sort(key=lambda outline: outline[0], reverse=True)
    kept = [ring for i, (area, ring) in enumerate(outlines) if i == 0 or area >= min_part_area_px]
    parts = []
    for ring in kept[:max_parts]:
        ratio_px = epsilon_ratio * _perimeter(ring) if epsilon_ratio > 0 else 0.0
        vertices = _simplify(ring, max(ratio_px, min_epsilon_px))
        parts.append(_normalise(_start_upper_left(vertices), width, height))
    return Region(tuple(parts))


def _outer_outlines(mask_hw: NDArray[np.bool_]) -> list[NDArray[np.int32]]:
    """Corners (x, y) of each clockwise outline along pixel edges, from its topmost, then leftmost
    corner; outlines of holes are left out.

    On every horizontal grid line the corners 0 and 1, 2 and 3, ... are the ends of one edge, and
    likewise on every vertical one. An outline follows such edges in turn.
    """
    corners = _corners(mask_hw)
    across_line = _other_ends(corners)
    seen = bytearray(len(across_line))
    outlines = []
    for first in range(0, len(seen), 2):
        if seen[first]:
            continue
        ring, here = [], first
        while not seen[here]:
            right = here ^ 1  # the other end of the horizontal edge: corners are sorted by row
            seen[here] = seen[right] = 1
            ring += [here, right]
            here = across_line[right]
        if corners.around[first] & _LOWER_RIGHT:
            outlines.append(corners.xy[ring])
    return outlines


class _Corners(NamedTuple):
    """Where outlines turn, row by row. A point where two outlines meet is in twice: first as the
    end of the edge to its left, then as the end of the edge to its right."""

    xy: NDArray[np.int32]
    around: NDArray[np.uint8]
    is_second: NDArray[np.bool_]


# The four pixels around a grid point, as bits.
_UPPER_LEFT, _UPPER_RIGHT, _LOWER_LEFT, _LOWER_RIGHT = 1, 2, 4, 8
# Turns at a grid point by the pixels around it: two where only diagonal pixels agree.
_TURNS = np.array([0, 1, 1, 0, 1, 0, 2, 1, 1, 2, 0, 1, 0, 1, 1, 0], np.uint8)


def _corners(mask_hw: NDArray[np.bool_]) -> _Corners:
    height, width = mask_hw.shape
    padded = np.zeros((height + 2, width + 2), np.uint8)
    padded[1:-1, 1:-1] = mask_hw
    around = padded[:-1, :-1] + _UPPER_RIGHT * padded[:-1, 1:]
    around += _LOWER_LEFT * padded[1:, :-1] + _LOWER_RIGHT * padded[1:, 1:]
    around = around.ravel()
    turns = _TURNS[around]
    points = np.flatnonzero(turns)
    points = np.repeat(points, turns[points])
    is_second = np.zeros(len(points), np.bool_)
    np.equal(points[1:], points[:-1], out=is_second[1:])
    y, x = np.divmod(points, width + 1)
    return _Corners(np.stack([x, y], axis=1).astype(np.int32), around[points], is_second)


def _other_ends(corners: _Corners) -> list[int]:
    """For each corner the one at the other end of its vertical edge.

    Pixels that touch only at a corner keep separate outlines. So there the left edge goes on
    upwards around an upper left pixel, and downwards around a lower left one.
    """
    goes_down = corners.is_second ^ (corners.around == _UPPER_RIGHT | _LOWER_LEFT)
    x, y = corners.xy.T.astype(np.int64)
    by_column = np.argsort((x * (y.max(initial=0) + 1) + y) * 2 + goes_down)
    others = np.empty(len(by_column), np.int64)
    others[by_column[::2]], others[by_column[1::2]] = by_column[1::2], by_column[::2]
    ends: list[int] = others.tolist()
    return ends


def _area(ring: NDArray[np.int32]) -> int:
    """Enclosed pixels of a clockwise ring along pixel edges: every second edge is horizontal."""
    x, y = ring[:, 0].astype(np.int64), ring[:, 1]
    return int(((x[::2] - x[1::2]) * y[::2]).sum())


def _perimeter(ring: NDArray[np.int32]) -> float:
    """Length in pixels, measured across the stairs that slanted outlines make on the pixel grid."""
    return float(cv2.arcLength(_simplify(ring, 1.0), True))


def _simplify(ring: NDArray[np.int32], epsilon_px: float) -> NDArray[np.int32]:
    if epsilon_px <= 0:
        return ring
    simple = cv2.approxPolyDP(ring, epsilon_px, True).reshape(-1, 2).astype(np.int32)
    # Something thinner than the tolerance is left without an area: it gets a finer one.
    return simple if len(simple) >= 3 else _simplify(ring, epsilon_px / 2)


def _start_upper_left(ring: NDArray[np.int32]) -> NDArray[np.int32]:
    first = np.lexsort((ring[:, 1], ring.sum(axis=1)))[0]
    return np.roll(ring, -int(first), axis=0)


def _normalise(ring: NDArray[np.int32], width: int, height: int) -> Ring:
    return tuple(Point(x / width, y / height) for x, y in ring.tolist())


def released_region_from_mask(
    mask_hw: NDArray[np.bool_], *, epsilon_ratio: float = 0.001
) -> Region:
    """The released data script's contours: cv2 ``RETR_EXTERNAL``, ``CHAIN_APPROX_SIMPLE``,
    ``approxPolyDP``, pixel *indices* divided by width and height (songtianhui/SimpleSeg,
    data/data.py). Rings may have fewer than three vertices and keep cv2's order and start.
    """
    height, width = mask_hw.shape
    contours, _ = cv2.findContours(
        mask_hw.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    rings = [cv2.approxPolyDP(c, epsilon_ratio * cv2.arcLength(c, True), True) for c in contours]
    return Region(
        tuple(_normalise(ring.reshape(-1, 2).astype(np.int32), width, height) for ring in rings)
    )
