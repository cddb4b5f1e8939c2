"""How a mask becomes the outline that a model learns to write, and the ablations of it."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from simpleseg_polygon.contour import region_from_mask, released_region_from_mask
from simpleseg_polygon.geometry import Region, Ring, signed_area

Convention = Literal["edges", "released"]
Order = Literal["clockwise", "counter-clockwise", "unordered"]
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)
ORDERS: tuple[Order, ...] = get_args(Order)


@dataclass(frozen=True)
class Contours:
    """Settings of label making.

    ``convention`` is ``edges`` (outlines along pixel edges, as the server draws them) or
    ``released`` (cv2 contours through pixel indices, as the released data script makes them).
    ``epsilon_ratio`` is the tolerance of Douglas-Peucker as a share of a ring's perimeter; 0.005 is
    the paper's best (arXiv 2601.19228). ``min_epsilon_px`` is its least tolerance in pixels; the
    stairs of a slanted edge deviate by up to 0.71. The released convention has none.
    ``unordered`` shuffles the vertices of a ring: the ablation that shows what order is worth.
    Raises ValueError for values that no label can be made with.
    """

    convention: Convention = "edges"
    order: Order = "clockwise"
    epsilon_ratio: float = 0.005
    min_epsilon_px: float = 0.75
    min_part_area_px: int = 8
    max_parts: int | None = None

    def __post_init__(self) -> None:
        if self.convention not in CONVENTIONS:
            raise ValueError(f"no convention {self.convention!r}: use {', '.join(CONVENTIONS)}")
        if self.order not in ORDERS:
            raise ValueError(f"no order {self.order!r}: use {', '.join(ORDERS)}")
        if not 0 <= self.epsilon_ratio < 1:
            raise ValueError(f"epsilon_ratio must be in [0, 1), not {self.epsilon_ratio}")

    def region_of(self, mask_hw: NDArray[np.bool_], rng: Generator | None = None) -> Region:
        """The label of a mask of shape (H, W). ``unordered`` draws from ``rng`` and needs one.

        >>> Contours(order="counter-clockwise").region_of(np.ones((4, 4), bool)).parts[0][1]
        Point(x=0.0, y=1.0)
        """
        region = self._traced(mask_hw)
        return Region(tuple(self._ordered(ring, rng) for ring in region.parts))

    def _traced(self, mask_hw: NDArray[np.bool_]) -> Region:
        if self.convention == "released":
            traced = released_region_from_mask(mask_hw, epsilon_ratio=self.epsilon_ratio)
            rings = [_clockwise(ring) for ring in traced.parts if len(ring) >= 3]
            rings.sort(key=signed_area, reverse=True)
            least = self.min_part_area_px / mask_hw.size
            kept = [ring for i, ring in enumerate(rings) if not i or signed_area(ring) >= least]
            return Region(tuple(kept[: self.max_parts]))
        return region_from_mask(
            mask_hw,
            epsilon_ratio=self.epsilon_ratio,
            min_epsilon_px=self.min_epsilon_px,
            min_part_area_px=self.min_part_area_px,
            max_parts=self.max_parts,
        )

    def _ordered(self, ring: Ring, rng: Generator | None) -> Ring:
        if self.order == "clockwise":
            return ring
        if self.order == "counter-clockwise":
            return ring[:1] + ring[:0:-1]
        if rng is None:
            raise ValueError("unordered contours need a random generator")
        return tuple(ring[i] for i in rng.permutation(len(ring)))


def _clockwise(ring: Ring) -> Ring:
    """cv2 runs counter-clockwise on screen; the vertex it starts with stays the first."""
    return ring if signed_area(ring) >= 0 else ring[:1] + ring[:0:-1]
