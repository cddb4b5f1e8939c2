"""GeoJSON (RFC 7946): a true MultiPolygon, unlike the ``polygons`` of the API."""

from typing import Literal

from typing_extensions import TypedDict

from simpleseg.formats.rings import (
    PARTS_PER_PIXEL,
    PARTS_PER_SIDE,
    XYList,
    polygons_norm,
    polygons_px,
    to_unit,
)
from simpleseg_polygon.geometry import ImageSize, Region


class GeoJsonMultiPolygon(TypedDict):
    """A GeoJSON geometry. Each polygon is its outline followed by its holes; rings are closed, and
    outlines run counterclockwise as numbers, that is clockwise on screen, where y grows downwards.
    """

    type: Literal["MultiPolygon"]
    coordinates: list[list[XYList]]


def geojson_multipolygon(
    region: Region,
    size: ImageSize,
    *,
    coordinates: Literal["pixel", "normalized"] = "pixel",
) -> GeoJsonMultiPolygon:
    """The region's area as a GeoJSON geometry, valid as OGC has it: parts that overlap are united,
    outlines that cross themselves are taken apart, and what they enclose becomes a hole.

    Coordinates are pixels of the image, (0, 0) its upper left corner, y downwards, as viewers of
    images take them; or shares of its sides where ``coordinates`` is "normalized". They are not
    longitude and latitude.

    Raises TooComplexError where the outlines cross too often.

    >>> from simpleseg_polygon.geometry import Box
    >>> geojson_multipolygon(Region((Box(0, 0, 0.5, 1).ring(),)), ImageSize(10, 20))["coordinates"]
    [[[[0.0, 0.0], [10.0, 0.0], [10.0, 10.0], [0.0, 10.0], [0.0, 0.0]]]]
    """
    if coordinates == "pixel":
        polygons, parts = polygons_px(region, size), PARTS_PER_PIXEL
    else:
        polygons, parts = polygons_norm(region), PARTS_PER_SIDE
    return {
        "type": "MultiPolygon",
        "coordinates": [
            [to_unit((*ring, ring[0]), parts) for ring in (polygon.outline, *polygon.holes)]
            for polygon in polygons
        ],
    }
