"""Mask -> region: the labels that a model learns to write.

``region_from_mask`` follows pixel edges, so that rasterising an unsimplified region gives the mask
back exactly (holes filled: the language has none). ``released_region_from_mask`` reproduces the
released data script for evaluating and training as the paper did.
"""

from collections import defaultdict

import cv2
import numpy as np
from numpy.typing import NDArray

from simpleseg_polygon.geometry import Point, Region, Ring

_Lattice = tuple[int, int]


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
    ``max(epsilon_ratio * perimeter, min_epsilon_px)`` pixels to the outline; 0 keeps every corner.
    Parts smaller than ``min_part_area_px`` pixels are dropped, except the largest. Each ring starts
    at its vertex nearest the image's upper left corner (least x + y, then least y).

    >>> region_from_mask(np.array([[False, True], [False, True]])).parts[0]
    (Point(x=0.5, y=0.0), Point(x=1.0, y=0.0), Point(x=1.0, y=1.0), Point(x=0.5, y=1.0))
    """
    height, width = mask_hw.shape
    outlines = sorted(_outer_outlines(mask_hw), key=_area, reverse=True)
    kept = [ring for i, ring in enumerate(outlines) if i == 0 or _area(ring) >= min_part_area_px]
    parts = []
    for outline in kept[:max_parts]:
        vertices = _simplify(outline, max(epsilon_ratio * _perimeter(outline), min_epsilon_px))
        parts.append(_normalise(_start_upper_left(vertices), width, height))
    return Region(tuple(parts))


def _outer_outlines(mask_hw: NDArray[np.bool_]) -> list[NDArray[np.int32]]:
    """Corners (x, y) of each clockwise outline along pixel edges; hole outlines are left out."""
    edges = _boundary_edges(mask_hw)
    outlines = []
    while edges:
        ring = _corners(_follow(edges))
        if _area(ring) > 0:
            outlines.append(ring)
    return outlines


def _boundary_edges(mask_hw: NDArray[np.bool_]) -> dict[_Lattice, list[_Lattice]]:
    """Unit edges between inside and outside, each from its start to its end with inside on its
    right, keyed by start."""
    padded = np.pad(mask_hw, 1).astype(np.int8)
    edges: dict[_Lattice, list[_Lattice]] = defaultdict(list)
    down = np.diff(padded, axis=0)[:, 1:-1]  # +1: the mask begins below this line
    for y, x in np.argwhere(down == 1).tolist():
        edges[x, y].append((x + 1, y))
    for y, x in np.argwhere(down == -1).tolist():
        edges[x + 1, y].append((x, y))
    across = np.diff(padded, axis=1)[1:-1]  # +1: the mask begins right of this line
    for y, x in np.argwhere(across == 1).tolist():
        edges[x, y + 1].append((x, y))
    for y, x in np.argwhere(across == -1).tolist():
        edges[x, y].append((x, y + 1))
    return edges


def _follow(edges: dict[_Lattice, list[_Lattice]]) -> NDArray[np.int32]:
    """Remove one closed outline from the edges and return its lattice points in order."""
    start = next(iter(edges))
    here, step = start, (0, 0)
    path = []
    while True:
        path.append(here)
        ends = edges[here]
        # Where two pixels touch at a corner, turning right keeps them in separate outlines.
        chosen = ends[0] if len(ends) == 1 else max(ends, key=lambda end: _turn(step, here, end))
        ends.remove(chosen)
        if not ends:
            del edges[here]
        here, step = chosen, (chosen[0] - here[0], chosen[1] - here[1])
        if here == start and (here not in edges or len(path) > 1):
            return np.array(path, np.int32)


def _turn(step: _Lattice, here: _Lattice, end: _Lattice) -> int:
    """+1 for a right turn on screen, -1 for a left turn."""
    return step[0] * (end[1] - here[1]) - step[1] * (end[0] - here[0])


def _corners(path: NDArray[np.int32]) -> NDArray[np.int32]:
    before = path - np.roll(path, 1, axis=0)
    after = np.roll(path, -1, axis=0) - path
    return path[(before != after).any(axis=1)]


def _area(ring: NDArray[np.int32]) -> int:
    """Enclosed pixels; negative for the outline of a hole."""
    x, y = ring[:, 0].astype(np.int64), ring[:, 1].astype(np.int64)
    return int((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) // 2


def _perimeter(ring: NDArray[np.int32]) -> float:
    """Length in pixels, measured across the stairs that slanted outlines make on the pixel grid."""
    return float(cv2.arcLength(_simplify(ring, 1.0), True))


def _simplify(ring: NDArray[np.int32], epsilon_px: float) -> NDArray[np.int32]:
    if epsilon_px <= 0:
        return ring
    simple = cv2.approxPolyDP(ring, epsilon_px, True).reshape(-1, 2)
    return ring if len(simple) < 3 else simple.astype(np.int32)


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
    return Region(tuple(_normalise(ring.reshape(-1, 2), width, height) for ring in rings))
