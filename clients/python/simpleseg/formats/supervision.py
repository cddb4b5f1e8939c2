"""Roboflow's supervision: ``Detections``, arrays with one row for each object."""

from typing import Any

import numpy as np

from simpleseg.formats.packages import optional
from simpleseg_polygon.geometry import ImageSize, Region
from simpleseg_polygon.raster import region_to_mask


def supervision_detections(
    region: Region, size: ImageSize, label: str, *, score: float | None = None, class_id: int = 0
) -> Any:
    """A ``supervision.Detections`` of one row, of none for an empty region.

    ``xyxy`` is the box around the vertices in pixels, ``mask`` of shape (1, height, width),
    ``confidence`` the score, None without one, and ``data["class_name"]`` the label.

    Raises MissingPackageError where the package is not installed.
    """
    detections = optional("supervision").Detections
    box = region.bounding_box()
    if box is None:
        return detections.empty()
    sides = (size.width, size.height) * 2
    return detections(
        xyxy=np.array([[float(at * side) for at, side in zip(box, sides, strict=True)]]),
        mask=region_to_mask(region, size)[np.newaxis],
        confidence=None if score is None else np.array([score]),
        class_id=np.array([class_id]),
        data={"class_name": np.array([label])},
    )
