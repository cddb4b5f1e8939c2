"""Outlines as numbers of a format: rings that neither cross nor overlap."""

from simpleseg_polygon.geometry import ImageSize, Region
from simpleseg_polygon.unite import GridRing, Polygon, one_ring, unite

PARTS_PER_PIXEL = 100
"""Pixel coordinates have two decimals."""
PARTS_PER_SIDE = 1_000_000
"""Normalised coordinates have six decimals, percentages four."""

XYList = list[list[float]]


def polygons_px(region: Region, size: ImageSize) -> list[Polygon]:
    """The region's area without overlap, in hundredths of a pixel. Raises TooComplexError."""
    return unite(region, size.width * PARTS_PER_PIXEL, size.height * PARTS_PER_PIXEL)


def polygons_norm(region: Region) -> list[Polygon]:
    """The region's area without overlap, in millionths of the sides. Raises TooComplexError."""
    return unite(region, PARTS_PER_SIDE, PARTS_PER_SIDE)


def without_hole(polygon: Polygon) -> GridRing:
    """The polygon as one ring, for formats that know no holes: joined by bridges without width."""
    return one_ring([polygon.outline, *polygon.holes])


def to_unit(ring: GridRing, parts: int) -> XYList:
    """Grid points as ``[x, y]`` in units of ``parts`` grid steps.

    >>> to_unit(((0, 50), (125, 100)), 100)
    [[0.0, 0.5], [1.25, 1.0]]
    """
    return [[x / parts, y / parts] for x, y in ring]
