"""What the server answered, as geometry and pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from simpleseg.drawing import PALETTE, Color, draw_label, draw_region, enlarged
from simpleseg.formats import (
    coco_annotation,
    fiftyone_detection,
    fiftyone_polyline,
    geojson_multipolygon,
    label_studio_results,
    labelme_document,
    labelme_shapes,
    supervision_detections,
    svg_document,
    yolo_line,
)
from simpleseg.formats.coco import CocoAnnotation
from simpleseg.formats.geojson import GeoJsonMultiPolygon
from simpleseg.formats.label_studio import LabelStudioResult
from simpleseg.formats.labelme import LabelmeDocument
from simpleseg.schema import (
    DEFAULT_LABEL,
    Coordinates,
    Result,
    ResultWarning,
    SegmentResponse,
    Status,
)
from simpleseg_polygon.geometry import Box, ImageSize, Point, Region, Ring, signed_area
from simpleseg_polygon.raster import region_to_mask

OpenImage = Callable[[], Image.Image]
"""Gives the displayed image that was asked about."""


@dataclass(frozen=True)
class Segmentation:
    """One prompt's answer: a region, how it ended, and how sure the model was.

    ``status`` is "ok", "empty" (the object is not in the image), "truncated" (the answer was cut
    short; what was finished is kept) or "invalid" (the answer was not in the polygon language).
    ``bbox`` is the box around the region, (x0, y0, x1, y1) in [0, 1], None without a region.
    ``score`` in (0, 1] is the geometric mean probability of the coordinate tokens, None without.
    ``prompt`` is the text that was asked, None where the prompt was a point or a box alone.
    ``size_hw`` is the displayed image's size in pixels, EXIF orientation applied.
    ``timings_ms`` belongs to the whole request, which may have held several prompts.
    """

    prompt: str | None
    status: Status
    region: Region
    bbox: Box | None
    score: float | None
    size_hw: ImageSize
    index: int = 0
    warnings: tuple[ResultWarning, ...] = ()
    timings_ms: Mapping[str, float] = field(default_factory=dict[str, float])
    request_id: str | None = None
    open_image: OpenImage | None = field(default=None, repr=False, compare=False)

    @property
    def polygons(self) -> list[list[tuple[float, float]]]:
        """The parts' outlines as (x, y) in [0, 1]: exterior rings to be united, not closed.

        Not GeoJSON: there a second ring would be a hole.
        """
        return [[(x, y) for x, y in ring] for ring in self.region.parts]

    @property
    def label(self) -> str:
        """The phrase that was asked, or "object": the label in other tools' formats."""
        return self.prompt or DEFAULT_LABEL

    @property
    def point_count(self) -> int:
        """How many vertices the region has, over all parts."""
        return self.region.vertex_count

    def mask(self) -> NDArray[np.bool_]:
        """The region as a boolean array of shape (height, width) at the image's own size."""
        return self._mask.copy()

    @cached_property
    def _mask(self) -> NDArray[np.bool_]:
        return region_to_mask(self.region, self.size_hw)

    def to_svg(self) -> str:
        """The region as an SVG document of the image's size, in pixels."""
        return svg_document(self.region, self.size_hw, self.label)

    def to_geojson(self, *, coordinates: Coordinates = "pixel") -> GeoJsonMultiPolygon:
        """The area as a valid GeoJSON MultiPolygon, y downwards, overlap united.

        Raises TooComplexError where the outlines cross too often, as do the methods below.
        """
        return geojson_multipolygon(self.region, self.size_hw, coordinates=coordinates)

    def to_coco(
        self,
        *,
        image_id: int = 1,
        category_id: int = 1,
        segmentation: Literal["polygons", "rle"] = "polygons",
    ) -> CocoAnnotation:
        """A COCO annotation; ``simpleseg.formats.coco_dataset`` makes a document of several.

        Outlines that cross too often become an RLE.
        """
        return coco_annotation(
            self.region,
            self.size_hw,
            annotation_id=self.index + 1,
            image_id=image_id,
            category_id=category_id,
            score=self.score,
            segmentation=segmentation,
        )

    def to_labelme(self, image_path: str = "") -> LabelmeDocument:
        """A labelme file; ``image_path`` is the image's, relative to the file.

        ``shapes`` of several results may be put into one.
        """
        shapes = labelme_shapes(self.region, self.size_hw, self.label, group_id=self.index + 1)
        return labelme_document(shapes, self.size_hw, image_path)

    def to_label_studio(
        self, *, from_name: str = "label", to_name: str = "image"
    ) -> list[LabelStudioResult]:
        """The ``result`` list of a Label Studio prediction, points in percent.

        The names are those of the <PolygonLabels> and <Image> tags of the labelling interface.
        """
        return label_studio_results(
            self.region,
            self.size_hw,
            self.label,
            score=self.score,
            from_name=from_name,
            to_name=to_name,
            id_prefix=f"simpleseg-{self.index}",
        )

    def to_yolo(self, class_id: int = 0) -> str:
        """A line of YOLO segmentation labels; "" for an empty region."""
        return yolo_line(self.region, class_id)

    def to_supervision(self, *, class_id: int = 0) -> Any:
        """A ``supervision.Detections`` with one object, none for an empty region: xyxy in pixels,
        the mask, the score as confidence and the label as ``data["class_name"]``.

        ``Detections.merge`` joins those of several results; give them class ids of their own.
        Raises MissingPackageError without the package, as does the method below.
        """
        return supervision_detections(
            self.region, self.size_hw, self.label, score=self.score, class_id=class_id
        )

    def to_fiftyone(self, *, label_type: Literal["polyline", "detection"] = "polyline") -> Any:
        """A label of FiftyOne: a ``Polyline``, or a ``Detection`` whose mask fills its box.

        Raises TooComplexError for a polyline whose outlines cross too often.
        """
        if label_type == "polyline":
            return fiftyone_polyline(self.region, self.label, score=self.score)
        return fiftyone_detection(self.region, self.size_hw, self.label, score=self.score)

    def overlay(
        self,
        image: Image.Image | None = None,
        *,
        color: Color | None = None,
        min_side_px: int = 512,
    ) -> Image.Image:
        """The region drawn over its image, RGB.

        ``image`` is needed only where the request named the image by URL or was about an uploaded
        one; without it, the image that was sent is drawn on. Images whose shorter side is under
        ``min_side_px`` pixels are enlarged by a whole factor so that outline and label can be read;
        1 keeps the size.

        Raises ValueError where there is no image to draw on.
        """
        if image is None:
            if self.open_image is None:
                raise ValueError("only the server has the image: pass it, overlay(image=...)")
            image = self.open_image()
        paint = PALETTE[self.index % len(PALETTE)] if color is None else color
        return _draw(self, enlarged(image, min_side_px), paint)


def overlay(results: Sequence[Segmentation], *, min_side_px: int = 512) -> Image.Image:
    """Several prompts' regions drawn over the image they share, each in its own colour.

    Raises ValueError where ``results`` is empty or only the server has the image.
    """
    if not results:
        raise ValueError("there is no result to draw")
    picture = results[0].overlay(min_side_px=min_side_px)
    for result in results[1:]:
        picture = result.overlay(picture, min_side_px=1)
    return picture


def _draw(result: Segmentation, picture: Image.Image, color: Color) -> Image.Image:
    # The label stands above the top of the largest part; without a region, at the lower left.
    corner = (0.0, float(picture.height))
    if result.region.parts:
        picture = draw_region(picture, result.region, color)
        top = min(_largest_part(result.region), key=lambda point: point.y)
        corner = (top.x * picture.width, top.y * picture.height)
    label = result.label if result.status == "ok" else f"{result.label} ({result.status})"
    draw_label(picture, label, corner, color)
    return picture


def _largest_part(region: Region) -> Ring:
    return max(region.parts, key=lambda ring: abs(signed_area(ring)))


def segmentations(
    response: SegmentResponse,
    request_id: str | None = None,
    open_image: OpenImage | None = None,
) -> list[Segmentation]:
    """A response in normalised coordinates as results, in the order of the prompts."""
    return [
        Segmentation(
            prompt=result.prompt,
            status=result.status,
            region=region_of(result),
            bbox=Box(*result.bbox) if result.bbox else None,
            score=result.score,
            size_hw=ImageSize(response.image.height, response.image.width),
            index=result.index,
            warnings=tuple(w for w in response.warnings if w.result in (None, result.index)),
            timings_ms=response.timings_ms,
            request_id=request_id,
            open_image=open_image,
        )
        for result in response.results
    ]


def region_of(result: Result) -> Region:
    """The region in a result with normalised coordinates; empty where it has no polygons."""
    polygons = result.polygons or []
    return Region(tuple(tuple(Point(x, y) for x, y in ring) for ring in polygons))
