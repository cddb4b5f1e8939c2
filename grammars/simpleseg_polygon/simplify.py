"""Fewer vertices for the same outline: Douglas-Peucker on closed rings."""

import numpy as np
from numpy.typing import NDArray

from simpleseg_polygon.geometry import ImageSize, Region, Ring

_Floats = NDArray[np.float64]


def simplify_region(region: Region, size: ImageSize, tolerance_px: float) -> Region:
    """The region with only those vertices that its outline needs within ``tolerance_px`` pixels.

    Distances are measured in pixels of an image of ``size`` (height, width), so that a tolerance
    means the same along both axes. No vertex that is left out lies farther than the tolerance from
    the new outline. Every part keeps at least three vertices, all of them its own and in their
    order; a tolerance of 0 changes nothing. Parts that were apart may come to overlap by up to
    twice the tolerance.

    >>> from simpleseg_polygon.geometry import Point
    >>> ring = (Point(0, 0), Point(0.5, 0.01), Point(1, 0), Point(1, 1))
    >>> simplify_region(Region((ring,)), ImageSize(100, 100), 2.0).vertex_count
    3
    """
    if tolerance_px <= 0:
        return region
    return Region(tuple(_simplify(ring, size, tolerance_px) for ring in region.parts))


def _simplify(ring: Ring, size: ImageSize, tolerance_px: float) -> Ring:
    if len(ring) <= 3:
        return ring
    xy = np.array(ring) * (size.width, size.height)
    return tuple(ring[k] for k in sorted(_needed(xy, tolerance_px)))


def _needed(xy: _Floats, tolerance: float) -> set[int]:
    """Indices of the vertices to keep, from the two ends of the ring inwards.

    The ends are far apart: the vertex farthest from the first one, and the farthest from that.
    """
    count = len(xy)
    one = int(np.argmax(np.hypot(*(xy - xy[0]).T)))
    other = int(np.argmax(np.hypot(*(xy - xy[one]).T)))
    first, last = min(one, other), max(one, other)
    kept = {first, last}
    # Vertices are numbered on past the end, so that the way back to the first is a range too.
    open_ranges = [(first, last), (last, first + count)]
    while open_ranges:
        begin, end = open_ranges.pop()
        if end - begin < 2:
            continue
        between = np.arange(begin + 1, end) % count
        distance = _distances(xy[between], xy[begin % count], xy[end % count])
        farthest = int(np.argmax(distance))
        if distance[farthest] > tolerance:
            kept.add(int(between[farthest]))
            middle = begin + 1 + farthest
            open_ranges += [(begin, middle), (middle, end)]
    if len(kept) < 3:
        distance = _distances(xy, xy[first], xy[last])
        distance[[first, last]] = -1.0
        kept.add(int(np.argmax(distance)))
    if len(kept) < 3:  # all vertices are one point
        kept |= set(range(3))
    return kept


def _distances(points: _Floats, start: _Floats, end: _Floats) -> _Floats:
    """Distance of each point (n, 2) from the segment between ``start`` and ``end``."""
    along = end - start
    length_squared = float(along @ along)
    if length_squared == 0:
        return np.asarray(np.hypot(*(points - start).T))
    share = np.clip((points - start) @ along / length_squared, 0.0, 1.0)
    return np.asarray(np.hypot(*(points - start - share[:, None] * along).T))
