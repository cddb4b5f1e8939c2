"""Regions as a person left them, corrected perhaps, as a file of another tool.

The same converters make it that make the outputs of ``/segment``.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image
from pydantic import Field

from simpleseg.formats import (
    coco_annotation,
    coco_dataset,
    geojson_multipolygon,
    label_studio_results,
    labelme_document,
    labelme_shapes,
    yolo_line,
)
from simpleseg.schema import XY, RequestModel
from simpleseg_polygon.geometry import ImageSize, Point, Region
from simpleseg_polygon.raster import region_to_mask
from simpleseg_polygon.unite import TooComplexError
from simpleseg_server.errors import ApiError

Format = Literal["coco", "labelme", "label_studio", "yolo", "geojson", "mask"]
MAX_OBJECTS = 255
"""Objects in a file: as many as an 8-bit mask has values for, beside the background."""


class ExportedObject(RequestModel):
    """One object; ``polygons`` are parts to be united, coordinates in [0, 1]."""

    label: str = Field(max_length=8192)
    polygons: list[list[XY]]
    score: float | None = Field(default=None, ge=0, le=1)


class ExportRequest(RequestModel):
    """The body of ``POST /playground/export``; ``width`` and ``height`` are the image's."""

    format: Format
    file_name: str = Field(max_length=1024)
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    objects: list[ExportedObject] = Field(min_length=1, max_length=MAX_OBJECTS)


class Exported(NamedTuple):
    """A file's bytes and their media type."""

    content: bytes
    media_type: str


@dataclass(frozen=True)
class _Labelled:
    """An object as the converters take it; equal labels have one class, numbered from 0."""

    region: Region
    label: str
    class_id: int
    score: float | None


def export(request: ExportRequest) -> Exported:
    """The file that the request asks for. Raises ApiError 422 outline_too_complex."""
    classes = list(dict.fromkeys(one.label for one in request.objects))
    objects = [
        _Labelled(_region(one), one.label, classes.index(one.label), one.score)
        for one in request.objects
    ]
    size = ImageSize(request.height, request.width)
    try:
        return _WRITERS[request.format](objects, size, request.file_name)
    except TooComplexError:
        message = "the outlines cross too often for this format; the mask can hold them"
        raise ApiError(422, "outline_too_complex", message, param="objects") from None


def _region(given: ExportedObject) -> Region:
    """Parts of fewer than 3 vertices bound nothing and are left out."""
    rings = (tuple(Point(*xy) for xy in ring) for ring in given.polygons)
    return Region(tuple(ring for ring in rings if len(ring) > 2))


def _json(value: Any) -> Exported:
    return Exported(json.dumps(value, ensure_ascii=False, indent=1).encode(), "application/json")


def _coco(objects: Sequence[_Labelled], size: ImageSize, name: str) -> Exported:
    annotations = [
        coco_annotation(one.region, size, category_id=one.class_id + 1, score=one.score)
        for one in objects
    ]
    categories = {one.class_id + 1: one.label for one in objects}
    return _json(coco_dataset([name], [size], annotations, categories))


def _labelme(objects: Sequence[_Labelled], size: ImageSize, name: str) -> Exported:
    shapes = [
        shape
        for number, one in enumerate(objects, 1)
        for shape in labelme_shapes(one.region, size, one.label, group_id=number)
    ]
    return _json(labelme_document(shapes, size, name))


def _label_studio(objects: Sequence[_Labelled], size: ImageSize, name: str) -> Exported:
    """A list of one task with a prediction, as Label Studio imports it."""
    results = [
        result
        for number, one in enumerate(objects)
        for result in label_studio_results(
            one.region, size, one.label, score=one.score, id_prefix=f"simpleseg-{number}"
        )
    ]
    prediction = {"model_version": "simpleseg", "result": results}
    return _json([{"data": {"image": name}, "predictions": [prediction]}])


def _geojson(objects: Sequence[_Labelled], size: ImageSize, name: str) -> Exported:
    features = [
        {
            "type": "Feature",
            "properties": {"label": one.label, "score": one.score, "image": name},
            "geometry": geojson_multipolygon(one.region, size),
        }
        for one in objects
    ]
    return _json({"type": "FeatureCollection", "features": features})


def _yolo(objects: Sequence[_Labelled], size: ImageSize, name: str) -> Exported:
    lines = (yolo_line(one.region, one.class_id) for one in objects)
    return Exported("".join(f"{line}\n" for line in lines if line).encode(), "text/plain")


def _mask(objects: Sequence[_Labelled], size: ImageSize, name: str) -> Exported:
    """An 8-bit grey PNG: 0 is background, 1 the first object; of those that overlap, the last."""
    values = np.zeros(size, np.uint8)
    for number, one in enumerate(objects, 1):
        values[region_to_mask(one.region, size)] = number
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return Exported(buffer.getvalue(), "image/png")


_WRITERS: Mapping[Format, Callable[[Sequence[_Labelled], ImageSize, str], Exported]] = {
    "coco": _coco,
    "labelme": _labelme,
    "label_studio": _label_studio,
    "yolo": _yolo,
    "geojson": _geojson,
    "mask": _mask,
}
