"""FiftyOne: labels of a sample, in shares of the image's sides."""

from typing import Any

import numpy as np

from simpleseg.formats.packages import optional
from simpleseg.formats.rings import PARTS_PER_SIDE, polygons_norm, to_unit, without_hole
from simpleseg_polygon.geometry import ImageSize, Region
from simpleseg_polygon.raster import region_to_mask


def fiftyone_polyline(region: Region, label: str, *, score: float | None = None) -> Any:
    """A ``fiftyone.Polyline``, closed and filled, with one shape for each part of the area.

    Shapes neither overlap nor cross themselves; a hole is joined to its outline by a bridge
    without width. ``confidence`` is the score.

    Raises MissingPackageError where the package is not installed, TooComplexError where the
    outlines cross too often.
    """
    polyline = optional("fiftyone").Polyline
    rings = [to_unit(without_hole(p), PARTS_PER_SIDE) for p in polygons_norm(region)]
    shapes = [[(x, y) for x, y in ring] for ring in rings]
    return polyline(label=label, points=shapes, closed=True, filled=True, confidence=score)


def fiftyone_detection(
    region: Region, size: ImageSize, label: str, *, score: float | None = None
) -> Any:
    """A ``fiftyone.Detection`` with the mask's own pixels.

    ``bounding_box`` is [x, y, width, height] around the mask's pixels, over which FiftyOne
    stretches ``mask``; zeros and None for an empty mask.

    Raises MissingPackageError where the package is not installed.
    """
    detection = optional("fiftyone").Detection
    mask = region_to_mask(region, size)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return detection(label=label, bounding_box=[0.0] * 4, confidence=score)
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    box = [left / size.width, top / size.height]
    box += [(right - left) / size.width, (bottom - top) / size.height]
    crop = mask[top:bottom, left:right].copy()
    return detection(label=label, bounding_box=box, mask=crop, confidence=score)
