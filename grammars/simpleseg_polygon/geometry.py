"""Points, boxes and regions in normalised coordinates; the coordinate and pixel rules, stated once.

Coordinates
    ``x`` runs right and ``y`` runs down, both in [0, 1], normalised by the width and height of the
    *displayed* image (EXIF orientation applied). ``(0, 0)`` is the outer corner of the first pixel
    and ``(1, 1)`` the outer corner of the last, so ``x_px = x * width``. x always comes first.
Pixels
    Pixel (row i, column j) belongs to a ring if its centre ``(j + 0.5, i + 0.5)`` lies inside the
    ring under the non-zero winding rule. A region is the union of its parts; it has no holes.
Rings
    A ring is not closed (its last vertex differs from its first) and runs clockwise on screen.
Sizes
    Image sizes are written height first (``size_hw``), as arrays and COCO do.
"""

from dataclasses import dataclass
from typing import NamedTuple


class Point(NamedTuple):
    """A point, normalised to [0, 1].

    >>> Point(0.25, 0.5).x
    0.25
    """

    x: float
    y: float


class Box(NamedTuple):
    """An axis-parallel box given by its upper left and lower right corner, normalised to [0, 1].

    >>> Box(0.1, 0.2, 0.3, 0.4).x1
    0.3
    """

    x0: float
    y0: float
    x1: float
    y1: float

    def ring(self) -> "Ring":
        """The box's outline, clockwise from the upper left corner."""
        x0, y0, x1, y1 = self
        return Point(x0, y0), Point(x1, y0), Point(x1, y1), Point(x0, y1)

    def place(self, point: Point) -> Point:
        """A point normalised to this box, normalised to what the box is in.

        >>> Box(0.5, 0.0, 1.0, 0.5).place(Point(0.5, 1.0))
        Point(x=0.75, y=0.5)
        """
        x0, y0, x1, y1 = self
        return Point(x0 + point.x * (x1 - x0), y0 + point.y * (y1 - y0))

    def within(self, point: Point) -> Point:
        """The reverse of ``place``; what lies outside goes to the nearest edge. For boxes with an
        area.

        >>> Box(0.5, 0.0, 1.0, 0.5).within(Point(0.75, 0.6))
        Point(x=0.5, y=1.0)
        """
        x0, y0, x1, y1 = self
        x, y = (point.x - x0) / (x1 - x0), (point.y - y0) / (y1 - y0)
        return Point(min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0))


WHOLE = Box(0.0, 0.0, 1.0, 1.0)
"""All of an image."""

Ring = tuple[Point, ...]
"""The outline of one part: at least three vertices in a usable region, not closed."""


class ImageSize(NamedTuple):
    """Height and width of an image in pixels, in this order."""

    height: int
    width: int


@dataclass(frozen=True)
class Region:
    """One object's area: the union of its parts, each bounded by one ring.

    ``Region(())`` is the empty region: the object is not in the image.
    """

    parts: tuple[Ring, ...]

    def within(self, view: Box) -> "Region":
        """The same region, normalised to a view of the image; what lies outside is pressed to its
        edge, where it has no area."""
        return Region(tuple(tuple(map(view.within, ring)) for ring in self.parts))

    @property
    def is_empty(self) -> bool:
        return not self.parts

    @property
    def vertex_count(self) -> int:
        return sum(len(ring) for ring in self.parts)

    def bounding_box(self) -> Box | None:
        """The smallest box around all vertices, or None for the empty region.

        >>> Region(((Point(0.1, 0.2), Point(0.5, 0.2), Point(0.5, 0.9)),)).bounding_box()
        Box(x0=0.1, y0=0.2, x1=0.5, y1=0.9)
        """
        points = [point for ring in self.parts for point in ring]
        if not points:
            return None
        xs, ys = zip(*points, strict=True)
        return Box(min(xs), min(ys), max(xs), max(ys))


def signed_area(ring: Ring) -> float:
    """Shoelace area in squared coordinate units, positive where the ring runs clockwise on screen.

    >>> signed_area((Point(0, 0), Point(1, 0), Point(1, 1), Point(0, 1)))
    1.0
    """
    following = (*ring[1:], *ring[:1])
    return sum(a.x * b.y - b.x * a.y for a, b in zip(ring, following, strict=True)) / 2
