"""Region -> polygons that do not overlap, for formats that cannot hold a union of rings.

A region's parts may overlap, lie in one another, touch, or cross themselves; a pixel belongs to the
region if the winding number of any part around it is not zero. Here the same area becomes simple
outlines with holes, no two of which share more than single points: what OGC and RFC 7946 call a
valid multipolygon. A region that is one already keeps its vertices and their order.

The method counts in whole numbers on a grid: edges are cut where they cross, at the nearest grid
point, and where they pass a vertex by less than half a grid step, until they share nothing but
ends; then a piece is an outline exactly if it has the region on one side only.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simpleseg_polygon.geometry import Region

GridPoint = tuple[int, int]
GridRing = tuple[GridPoint, ...]

MAX_PAIRS = 1 << 23
"""Limit on the comparisons of one step; outlines of ten thousand vertices stay below it."""
MAX_CUTS = 4096
"""Limit on the cuts, two for each crossing; outlines of objects have none, or a few."""

_MAX_ROUNDS = 32  # moving edges to grid points may make them meet others
_PAIRS_PER_BLOCK = 1 << 20  # bounds the memory to about 100 MB

_Ints = NDArray[np.int64]
_Bools = NDArray[np.bool_]


class TooComplexError(ValueError):
    """The outlines cross so often that they cannot be those of an object."""


class Polygon(NamedTuple):
    """One connected area on the grid: its outline, clockwise on screen, and its holes, which run
    the other way. Rings are simple and not closed."""

    outline: GridRing
    holes: tuple[GridRing, ...]


def unite(region: Region, columns: int, rows: int) -> list[Polygon]:
    """The region's area as polygons that do not overlap, on a grid over the image.

    Vertices move to the nearest of ``columns + 1`` x ``rows + 1`` grid points, (0, 0) being the
    outer corner of the first pixel; those that are not finite are dropped, others clamped to the
    image. Rings without area vanish.

    Raises TooComplexError where the outlines cross too often.

    >>> from simpleseg_polygon.geometry import Box
    >>> overlapping = Region((Box(0, 0, 0.6, 1).ring(), Box(0.4, 0, 1, 1).ring()))
    >>> [len(polygon.outline) for polygon in unite(overlapping, 10, 10)]
    [8]
    """
    edges = _edges(region, columns, rows)
    for _ in range(_MAX_ROUNDS):
        cuts = _meetings(edges)
        if len(cuts.edge) == 0:
            return _nested(list(_rings(_outlines(edges))))
        edges = _cut(edges, cuts)
    raise TooComplexError("the outlines cross too often")


def one_ring(rings: Sequence[GridRing]) -> GridRing:
    """Rings joined to one by bridges without width, each between the nearest vertices.

    Bridges are passed there and back, so that the ring encloses what the rings did, under the
    even-odd and, for outlines and holes as ``Polygon`` has them, the non-zero rule.

    >>> one_ring([((0, 0), (2, 0), (1, 1)), ((1, 2), (2, 3), (0, 3))])
    ((0, 0), (2, 0), (1, 1), (1, 2), (2, 3), (0, 3), (1, 2), (1, 1))
    """
    joined, *rest = rings
    for ring in rest:
        here, there = _nearest(joined, ring)
        joined = (
            *joined[: here + 1],
            *ring[there:],
            *ring[: there + 1],
            *joined[here:],
        )
    return joined


def _nearest(ring: GridRing, other: GridRing) -> tuple[int, int]:
    """Indices of the two vertices that are nearest to each other."""
    xy = np.array(ring, np.int64)
    squares = [((xy - vertex) ** 2).sum(axis=1) for vertex in np.array(other, np.int64)]
    nearest = [int(np.argmin(square)) for square in squares]
    there = min(range(len(other)), key=lambda k: squares[k][nearest[k]])
    return nearest[there], there


class _Edges(NamedTuple):
    """Directed edges, ring after ring, each ring's in its order; xy of shape (n, 2)."""

    start: _Ints
    end: _Ints
    ring: _Ints


class _Cuts(NamedTuple):
    """Points on edges: ``edge[k]`` is to be cut at ``xy[k]``."""

    edge: _Ints
    xy: _Ints


def _edges(region: Region, columns: int, rows: int) -> _Edges:
    starts, ends, rings = [], [], []
    for index, part in enumerate(region.parts):
        xy = np.array(part, np.float64).reshape(-1, 2)
        xy = np.clip(xy[np.isfinite(xy).all(axis=1)], 0.0, 1.0) * (columns, rows)
        vertices = np.rint(xy).astype(np.int64)
        if len(vertices) < 3:
            continue
        starts.append(vertices)
        ends.append(np.roll(vertices, -1, axis=0))
        rings.append(np.full(len(vertices), index))
    if not starts:
        none = np.empty((0, 2), np.int64)
        return _Edges(none, none, none[:, 0])
    return _with_length(_Edges(np.concatenate(starts), np.concatenate(ends), np.concatenate(rings)))


def _with_length(edges: _Edges) -> _Edges:
    has_length = (edges.start != edges.end).any(axis=1)
    return _Edges(*(values[has_length] for values in edges))


def _cross(a: _Ints, b: _Ints, c: _Ints) -> _Ints:
    """Twice the area of triangles a, b, c: positive where they run clockwise on screen."""
    (ax, ay), (bx, by), (cx, cy) = a.T, b.T, c.T
    return np.asarray((bx - ax) * (cy - ay) - (by - ay) * (cx - ax))


def _meetings(edges: _Edges) -> _Cuts:
    """Where edges meet other than at their common ends."""
    backward = edges.start[:, 0] > edges.end[:, 0]
    backward |= (edges.start[:, 0] == edges.end[:, 0]) & (edges.start[:, 1] > edges.end[:, 1])
    # All from one end, in one order: edges that coincide are then cut at the same points.
    first = np.where(backward[:, None], edges.end, edges.start)
    last = np.where(backward[:, None], edges.start, edges.end)
    order = np.lexsort((*last.T[::-1], *first.T[::-1]))
    first, last = first[order], last[order]
    found = [_cuts_of(first, last, i, j) for i, j in _neighbours(first, last)]
    cut = np.concatenate([np.empty(0, np.int64), *(c.edge for c in found)])
    xy = np.concatenate([np.empty((0, 2), np.int64), *(c.xy for c in found)])
    return _Cuts(order[cut], xy)


def _neighbours(first: _Ints, last: _Ints) -> Iterator[tuple[_Ints, _Ints]]:
    """All pairs of edges whose bounding boxes meet, in blocks; edges in order of their least x."""
    low_y, high_y = np.minimum(first[:, 1], last[:, 1]), np.maximum(first[:, 1], last[:, 1])
    # Only edges that begin, from left to right, before this one ends.
    stop = np.searchsorted(first[:, 0], last[:, 0], side="right")
    counts = stop - np.arange(len(first)) - 1
    if counts.sum() > MAX_PAIRS:
        raise TooComplexError("the outlines are too long")
    for begin, end in _blocks(counts):
        i = np.repeat(np.arange(begin, end), counts[begin:end])
        before = np.cumsum(counts[begin:end]) - counts[begin:end]
        j = i + 1 + np.arange(len(i)) - np.repeat(before, counts[begin:end])
        meet = (low_y[i] <= high_y[j]) & (low_y[j] <= high_y[i])
        yield i[meet], j[meet]


def _blocks(counts: _Ints) -> Iterator[tuple[int, int]]:
    """Ranges of items whose counts add up to about ``_PAIRS_PER_BLOCK`` each."""
    total = np.cumsum(counts)
    limits = np.arange(0, int(counts.sum()) + _PAIRS_PER_BLOCK, _PAIRS_PER_BLOCK)
    cuts = np.unique([*np.searchsorted(total, limits), len(counts)]).tolist()
    return zip(cuts[:-1], cuts[1:], strict=True)


def _cuts_of(first: _Ints, last: _Ints, i: _Ints, j: _Ints) -> _Cuts:
    """Where the edges ``i[k]`` and ``j[k]`` meet inside one of them: at an end or at a crossing."""
    a, b, c, d = first[i], last[i], first[j], last[j]
    side_a, side_b = _cross(c, d, a), _cross(c, d, b)
    side_c, side_d = _cross(a, b, c), _cross(a, b, d)
    crossing = np.sign(side_a) * np.sign(side_b) + np.sign(side_c) * np.sign(side_d) == -2
    share = side_a[crossing] / (side_a[crossing] - side_b[crossing])
    at = a[crossing] + np.rint(share[:, None] * (b - a)[crossing]).astype(np.int64)
    found = [(i[crossing], at), (j[crossing], at)]
    for cut, start, end, point, side in (
        (i, a, b, c, side_c),
        (i, a, b, d, side_d),
        (j, c, d, a, side_a),
        (j, c, d, b, side_b),
    ):
        # Edges this close count as touching; else two that are almost one would cross anew, one
        # step further on, each time that a crossing is rounded (Hobby, Practical segment
        # intersection with finite precision output, 1999).
        is_close = 2 * np.abs(side) < np.abs(end - start).max(axis=1)
        touches = is_close & (((point - start) * (point - end)).sum(axis=1) < 0)
        found.append((cut[touches], point[touches]))
    cuts = _Cuts(np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found]))
    inside = (cuts.xy != first[cuts.edge]).any(axis=1)
    inside &= (cuts.xy != last[cuts.edge]).any(axis=1)
    return _Cuts(cuts.edge[inside], cuts.xy[inside])


def _cut(edges: _Edges, cuts: _Cuts) -> _Edges:
    """The edges in pieces, in the order in which they were passed."""
    count = len(edges.start)
    if len(cuts.edge) > MAX_CUTS:
        raise TooComplexError("the outlines cross too often")
    edge = np.concatenate([np.arange(count), cuts.edge])
    start = np.concatenate([edges.start, cuts.xy])
    along = ((start - edges.start[edge]) * (edges.end - edges.start)[edge]).sum(axis=1)
    order = np.lexsort((along, edge))
    edge, start = edge[order], start[order]
    end = np.roll(start, -1, axis=0)
    is_last = np.append(edge[1:] != edge[:-1], True)
    end[is_last] = edges.end[edge[is_last]]
    return _with_length(_Edges(start, end, edges.ring[edge]))


def _outlines(edges: _Edges) -> list[tuple[GridPoint, GridPoint]]:
    """The edges that have the region on one side only, each once, directed so that it lies to their
    right on screen."""
    chain = _chains(edges)
    representative = np.flatnonzero(np.diff(chain, prepend=-1))
    on_left, on_right = _covered_sides(edges, representative)
    is_outline = (on_left != on_right)[chain]
    turned = on_left[chain][is_outline, None]
    start, end = edges.start[is_outline], edges.end[is_outline]
    start, end = np.where(turned, end, start), np.where(turned, start, end)
    pairs = zip(map(tuple, start.tolist()), map(tuple, end.tolist()), strict=True)
    return list(dict.fromkeys(pairs))


def _chains(edges: _Edges) -> _Ints:
    """A number for each edge, equal for edges that follow one another without meeting others; such
    edges have the same on their left, and the same on their right."""
    count = len(edges.start)
    if count == 0:
        return np.empty(0, np.int64)
    ends = np.concatenate([edges.start, edges.end])
    point, times = np.unique(ends, axis=0, return_inverse=True, return_counts=True)[1:]
    meets_others = times[point[:count]] != 2
    follows = np.zeros(count, np.bool_)
    follows[1:] = (edges.start[1:] == edges.end[:-1]).all(axis=1)
    follows[1:] &= edges.ring[1:] == edges.ring[:-1]
    return np.cumsum(meets_others | ~follows) - 1


def _covered_sides(edges: _Edges, which: _Ints) -> tuple[_Bools, _Bools]:
    """Whether the region covers the left, and the right side of the edges ``which`` on screen."""
    order = np.argsort(edges.ring, kind="stable")
    by_ring = _Edges(*(values[order] for values in edges))
    dx, dy = (edges.end - edges.start)[which].T
    upright = dx == 0
    above, below = np.empty((2, len(which)), np.bool_)
    for rows, axes in ((~upright, [0, 1]), (upright, [1, 0])):
        turned = _Edges(by_ring.start[:, axes], by_ring.end[:, axes], by_ring.ring)
        middle = (edges.start + edges.end)[which[rows]][:, axes]
        above[rows], below[rows] = _covered_above_below(turned, middle)
    # Above, that is at less y, is left of an edge that runs right; less x is right of one down.
    above_is_left = np.where(upright, dy < 0, dx > 0)
    return np.where(above_is_left, above, below), np.where(above_is_left, below, above)


def _covered_above_below(edges: _Edges, middle: _Ints) -> tuple[_Bools, _Bools]:
    """Whether the region covers what is just above, and just below points on edges.

    ``middle`` holds doubled coordinates, so that the middle of every edge is on the grid.
    """
    if len(middle) * len(edges.start) > 2 * MAX_PAIRS:
        raise TooComplexError("the outlines cross too often")
    first_of_ring = np.flatnonzero(np.diff(edges.ring, prepend=-1))
    (x0, y0), (x1, y1) = 2 * edges.start.T, 2 * edges.end.T
    left, right, direction = np.minimum(x0, x1), np.maximum(x0, x1), np.sign(x1 - x0)
    above, below = np.empty((2, len(middle)), np.bool_)
    step = max(1, _PAIRS_PER_BLOCK // max(1, len(edges.start)))
    for first in range(0, len(middle), step):
        x, y = middle[first : first + step].T[:, :, None]
        spans = direction * ((left <= x) & (x < right))
        depth = ((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) * direction
        beyond = np.add.reduceat(spans * (depth > 0), first_of_ring, axis=1)
        through = np.add.reduceat(spans * (depth == 0), first_of_ring, axis=1)
        above[first : first + step] = (beyond != 0).any(axis=1)
        below[first : first + step] = (beyond + through != 0).any(axis=1)
    return above, below


def _rings(edges: Sequence[tuple[GridPoint, GridPoint]]) -> Iterator[GridRing]:
    """Simple rings from outline edges; where several meet, each goes on around the area it has been
    going around."""
    leaving: defaultdict[GridPoint, list[GridPoint]] = defaultdict(list)
    for start, end in edges:
        leaving[start].append(end)
    used: set[tuple[GridPoint, GridPoint]] = set()
    for edge in edges:
        ring: list[GridPoint] = []
        while edge not in used:
            used.add(edge)
            ring.append(edge[0])
            edge = (edge[1], _onward(*edge, leaving[edge[1]]))
        yield from _simple_rings(ring)


def _onward(before: GridPoint, here: GridPoint, ways: Sequence[GridPoint]) -> GridPoint:
    """The way that keeps most to the right on screen, where the region is."""
    if len(ways) == 1:
        return ways[0]
    dx, dy = here[0] - before[0], here[1] - before[1]

    def turn(way: GridPoint) -> float:
        x, y = way[0] - here[0], way[1] - here[1]
        return float(np.arctan2(dx * y - dy * x, dx * x + dy * y))

    return max(ways, key=turn)


def _simple_rings(ring: Sequence[GridPoint]) -> Iterator[GridRing]:
    """The ring cut where it comes back to a point: what touches itself becomes several rings."""
    path: list[GridPoint] = []
    place: dict[GridPoint, int] = {}
    for point in ring:
        if point in place:
            loop = path[place[point] :]
            del path[place[point] :]
            for left in loop:
                del place[left]
            yield tuple(loop)
        place[point] = len(path)
        path.append(point)
    if path:
        yield tuple(path)


def _nested(rings: Sequence[GridRing]) -> list[Polygon]:
    """Outlines with the holes that belong to them: those inside, and inside no smaller outline."""
    sizes = [_doubled_area(ring) for ring in rings]
    outlines = [(size, ring) for size, ring in zip(sizes, rings, strict=True) if size > 0]
    holes: defaultdict[GridRing, list[GridRing]] = defaultdict(list)
    for size, ring in zip(sizes, rings, strict=True):
        if size < 0:
            around = [o for o in outlines if _is_inside(ring, o[1])]
            holes[min(around)[1]].append(ring)
    return [Polygon(ring, tuple(holes[ring])) for _, ring in outlines]


def _doubled_area(ring: GridRing) -> int:
    """Twice the area, positive where the ring runs clockwise on screen."""
    following = (*ring[1:], *ring[:1])
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(ring, following, strict=True))


def _box(ring: Sequence[GridPoint]) -> tuple[GridPoint, GridPoint]:
    xs, ys = zip(*ring, strict=True)
    return (min(xs), min(ys)), (max(xs), max(ys))


def _is_inside(ring: GridRing, outline: GridRing) -> bool:
    """Whether a ring lies inside an outline, with which it shares no edge."""
    if _box(outline) != _box((*outline, *ring)):
        return False
    start = np.array(outline, np.int64)
    edges = _Edges(start, np.roll(start, -1, axis=0), np.zeros(len(start), np.int64))
    (x0, y0), (x1, y1) = ring[:2]
    middle = np.array([[x0 + x1, y0 + y1]], np.int64)
    return bool(_covered_above_below(edges, middle)[0][0])
