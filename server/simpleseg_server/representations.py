"""A region as the outputs that a request asked for; it computes, so call it in a worker thread."""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from simpleseg.formats import (
    coco_annotation,
    geojson_multipolygon,
    label_studio_results,
    labelme_document,
    labelme_shapes,
    svg_document,
    yolo_line,
)
from simpleseg.schema import (
    DEFAULT_LABEL,
    DEFAULT_OUTPUTS,
    Coordinates,
    Include,
    Output,
    PromptItem,
    Rle,
    SegmentRequest,
)
from simpleseg_polygon.codec import ParseWarning
from simpleseg_polygon.geometry import ImageSize, Region
from simpleseg_polygon.raster import region_to_runs
from simpleseg_polygon.rle import Runs, mask_to_png, runs_area, runs_to_mask, runs_to_rle
from simpleseg_polygon.simplify import simplify_region
from simpleseg_polygon.unite import TooComplexError

_TOO_COMPLEX = ParseWarning(
    "outline_too_complex", "the outlines cross too often for some of the outputs; take rle or png"
)


@dataclass(frozen=True)
class Wanted:
    """What a request wants to see of its regions.

    ``tolerance`` is that of ``simplify``, in the unit of ``coordinates``; ``labels`` name the
    prompts' objects, in order. Equal labels are one class.
    """

    outputs: tuple[Output, ...]
    coordinates: Coordinates
    tolerance: float
    labels: tuple[str, ...]
    include: tuple[Include, ...] = ()

    @staticmethod
    def by(request: SegmentRequest, items: tuple[PromptItem, ...]) -> "Wanted":
        return Wanted(
            tuple(dict.fromkeys(request.outputs or DEFAULT_OUTPUTS)),
            request.coordinates,
            request.simplify or 0.0,
            tuple(item.text or DEFAULT_LABEL for item in items),
            tuple(request.include),
        )

    def simplified(self, region: Region, size: ImageSize) -> Region:
        """The region within the tolerance; as a share, that is one of the image's longer side."""
        unit_px = 1 if self.coordinates == "pixel" else max(size)
        return simplify_region(region, size, self.tolerance * unit_px)


@dataclass(frozen=True)
class Subject:
    """One prompt's region, and what formats tell about it."""

    region: Region
    size: ImageSize
    index: int
    score: float | None

    @cached_property
    def runs(self) -> Runs:
        return region_to_runs(self.region, self.size)


def represent(subject: Subject, wanted: Wanted) -> tuple[dict[str, Any], list[ParseWarning]]:
    """The area and all outputs but those in the request's own coordinates, which are the caller's.

    An output that the region is too complex for is None, with a warning.
    """
    area = runs_area(subject.runs) / (subject.size.height * subject.size.width)
    fields: dict[str, Any] = {"area": round(area, 6)}
    notes: list[ParseWarning] = []
    for output in wanted.outputs:
        if output not in _MAKERS:
            continue
        try:
            fields[output] = _MAKERS[output](subject, wanted)
        except TooComplexError:
            notes = [_TOO_COMPLEX]
    return fields, notes


def _rle(subject: Subject, wanted: Wanted) -> Rle:
    rle = runs_to_rle(subject.runs, subject.size)
    return Rle(size=list(rle.size), counts=rle.counts)


def _png(subject: Subject, wanted: Wanted) -> str:
    png = mask_to_png(runs_to_mask(subject.runs, subject.size))
    return base64.b64encode(png).decode("ascii")


def _svg(subject: Subject, wanted: Wanted) -> Any:
    return svg_document(subject.region, subject.size, wanted.labels[subject.index])


def _geojson(subject: Subject, wanted: Wanted) -> Any:
    return geojson_multipolygon(subject.region, subject.size, coordinates=wanted.coordinates)


def _coco(subject: Subject, wanted: Wanted) -> Any:
    return coco_annotation(
        subject.region,
        subject.size,
        annotation_id=subject.index + 1,
        category_id=_class_id(subject, wanted) + 1,
        score=subject.score,
    )


def _labelme(subject: Subject, wanted: Wanted) -> Any:
    label, group = wanted.labels[subject.index], subject.index + 1
    shapes = labelme_shapes(subject.region, subject.size, label, group_id=group)
    return labelme_document(shapes, subject.size)


def _label_studio(subject: Subject, wanted: Wanted) -> Any:
    return label_studio_results(
        subject.region,
        subject.size,
        wanted.labels[subject.index],
        score=subject.score,
        id_prefix=f"simpleseg-{subject.index}",
    )


def _yolo(subject: Subject, wanted: Wanted) -> Any:
    return yolo_line(subject.region, _class_id(subject, wanted))


def _class_id(subject: Subject, wanted: Wanted) -> int:
    """Classes are numbered from 0 in the order in which the prompts name them."""
    return list(dict.fromkeys(wanted.labels)).index(wanted.labels[subject.index])


_MAKERS: Mapping[Output, Callable[[Subject, Wanted], Any]] = {
    "rle": _rle,
    "png": _png,
    "svg": _svg,
    "geojson": _geojson,
    "coco": _coco,
    "labelme": _labelme,
    "label_studio": _label_studio,
    "yolo": _yolo,
}
