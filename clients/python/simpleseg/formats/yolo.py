"""YOLO segmentation labels: one object a line."""

from simpleseg.formats.rings import PARTS_PER_SIDE, polygons_norm, without_hole
from simpleseg_polygon.geometry import Region
from simpleseg_polygon.unite import one_ring


def yolo_line(region: Region, class_id: int = 0) -> str:
    """``class x1 y1 x2 y2 ...``, coordinates in [0, 1] with six decimals; "" for an empty region.

    The format has one ring for an object. Several parts, and outlines with their holes, are joined
    by bridges without width between their nearest vertices, passed there and back, as Ultralytics'
    own COCO converter does; its rasteriser paints a bridge as a line one pixel wide.

    Raises TooComplexError where the outlines cross too often.

    >>> from simpleseg_polygon.geometry import Box
    >>> yolo_line(Region((Box(0, 0, 0.5, 1).ring(),)), class_id=3)
    '3 0 0 0.5 0 0.5 1 0 1'
    """
    polygons = polygons_norm(region)
    if not polygons:
        return ""
    ring = one_ring([without_hole(polygon) for polygon in polygons])
    numbers = (_number(value) for point in ring for value in point)
    return " ".join([str(class_id), *numbers])


def _number(parts: int) -> str:
    """
    >>> _number(500_000), _number(1_000_000), _number(7)
    ('0.5', '1', '0.000007')
    """
    return f"{parts / PARTS_PER_SIDE:.6f}".rstrip("0").rstrip(".")
