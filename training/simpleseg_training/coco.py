"""COCO's JSON: its index, and its segmentations as masks."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simpleseg_polygon.geometry import ImageSize
from simpleseg_polygon.raster import Rle, rle_to_mask


@dataclass(frozen=True)
class Instances:
    """An annotation file by ids; entries are as in the file."""

    images: Mapping[int, Mapping[str, Any]]
    annotations: Mapping[int, Mapping[str, Any]]
    categories: Mapping[int, str]


def read_instances(path: Path) -> Instances:
    """Raises ValueError where the file is no COCO annotation file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Instances(
            {entry["id"]: entry for entry in content["images"]},
            {entry["id"]: entry for entry in content["annotations"]},
            {entry["id"]: entry["name"] for entry in content.get("categories", ())},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not COCO's JSON ({type(error).__name__}: {error})") from error


def size_of(image: Mapping[str, Any]) -> ImageSize:
    return ImageSize(int(image["height"]), int(image["width"]))


def image_path(folder: Path, image: Mapping[str, Any]) -> Path:
    """Where an entry's file is. Raises ValueError for a name that leads out of the folder."""
    name = PurePosixPath(image["file_name"])
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(f"an image must lie in its folder: {name}")
    return folder / name


def mask_of_segmentation(segmentation: Any, size: ImageSize) -> NDArray[np.bool_]:
    """Polygons in pixels, one run-length encoding, or a list of those; the union of all.

    Polygons are filled by COCO's own rule (pycocotools), so that numbers agree with published
    ones; their coordinates are pressed into the image before. Raises ValueError where it is none
    of these.
    """
    mask = np.zeros(size, np.bool_)
    for part in [segmentation] if isinstance(segmentation, Mapping) else segmentation:
        mask |= _rle_mask(part, size) if isinstance(part, Mapping) else _filled(part, size)
    return mask


def _rle_mask(rle: Mapping[str, Any], size: ImageSize) -> NDArray[np.bool_]:
    read = Rle.from_coco(rle)
    if read.size != size:
        raise ValueError(f"a mask of {read.size} for an image of {size}")
    return rle_to_mask(read)


def _filled(numbers: Sequence[float], size: ImageSize) -> NDArray[np.bool_]:
    from pycocotools import mask as coco_mask

    points = np.asarray(numbers, np.float64)
    if points.ndim != 1 or len(points) % 2 or not np.isfinite(points).all():
        raise ValueError("a polygon is x, y, x, y, ...")
    if len(points) < 6:
        return np.zeros(size, np.bool_)
    points = points.reshape(-1, 2).clip(0, (size.width, size.height)).ravel()
    return rle_to_mask(Rle.from_coco(coco_mask.frPyObjects([points.tolist()], *size)[0]))
