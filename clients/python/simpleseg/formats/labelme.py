"""labelme: the JSON file that stands beside an image."""

from collections.abc import Iterable

from typing_extensions import TypedDict

from simpleseg.formats.rings import PARTS_PER_PIXEL, XYList, polygons_px, to_unit, without_hole
from simpleseg_polygon.geometry import ImageSize, Region

LABELME_VERSION = "5.5.0"
"""The version of the file format that is written; labelme 5 and later read it."""


class LabelmeShape(TypedDict):
    """One polygon, points in pixels; shapes of one object share a ``group_id``."""

    label: str
    points: XYList
    group_id: int | None
    description: str
    shape_type: str
    flags: dict[str, bool]
    mask: None


class LabelmeDocument(TypedDict):
    """A labelme file. ``imagePath`` must name the image, relative to the file, for labelme to open
    it; ``imageData`` is null, so that the image is read from there."""

    version: str
    flags: dict[str, bool]
    shapes: list[LabelmeShape]
    imagePath: str
    imageData: None
    imageHeight: int
    imageWidth: int


def labelme_shapes(
    region: Region, size: ImageSize, label: str, *, group_id: int | None = None
) -> list[LabelmeShape]:
    """A polygon for each part of the region, in pixels with two decimals.

    Polygons do not overlap or cross themselves; a hole is joined to its outline by a bridge without
    width. ``group_id`` binds several; one polygon alone has none.

    Raises TooComplexError where the outlines cross too often.
    """
    rings = [to_unit(without_hole(p), PARTS_PER_PIXEL) for p in polygons_px(region, size)]
    return [
        {
            "label": label,
            "points": ring,
            "group_id": group_id if len(rings) > 1 else None,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
        }
        for ring in rings
    ]


def labelme_document(
    shapes: Iterable[LabelmeShape], size: ImageSize, image_path: str = ""
) -> LabelmeDocument:
    """A whole labelme file; ``image_path`` is the image's, relative to the file.

    >>> labelme_document([], ImageSize(10, 20), "a.png")["imageWidth"]
    20
    """
    return {
        "version": LABELME_VERSION,
        "flags": {},
        "shapes": list(shapes),
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": size.height,
        "imageWidth": size.width,
    }
