"""COCO: annotations of instances, and a whole data set document of them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NotRequired

from typing_extensions import TypedDict

from simpleseg.formats.rings import PARTS_PER_PIXEL, polygons_px, to_unit, without_hole
from simpleseg_polygon.geometry import ImageSize, Region
from simpleseg_polygon.raster import region_to_runs
from simpleseg_polygon.rle import runs_area, runs_to_rle
from simpleseg_polygon.unite import TooComplexError


class CocoRle(TypedDict):
    """A mask; ``size`` is [height, width], ``counts`` COCO's compressed string."""

    size: list[int]
    counts: str


class CocoAnnotation(TypedDict):
    """One object. Polygons are flat lists ``[x1, y1, x2, y2, ...]`` in pixels, to be united;
    ``bbox`` is [x, y, width, height] in pixels, ``area`` the number of pixels."""

    id: int
    image_id: int
    category_id: int
    segmentation: list[list[float]] | CocoRle
    area: int
    bbox: list[float]
    iscrowd: Literal[0, 1]
    score: NotRequired[float]


class CocoImage(TypedDict):
    id: int
    file_name: str
    width: int
    height: int


class CocoCategory(TypedDict):
    id: int
    name: str


class CocoDataset(TypedDict):
    """What ``pycocotools.coco.COCO`` loads from a file."""

    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


def coco_annotation(
    region: Region,
    size: ImageSize,
    *,
    annotation_id: int = 1,
    image_id: int = 1,
    category_id: int = 1,
    score: float | None = None,
    segmentation: Literal["polygons", "rle"] = "polygons",
) -> CocoAnnotation:
    """The region as a COCO annotation of an image of ``size`` pixels.

    Polygons do not overlap or cross themselves; a hole is joined to its outline by a bridge without
    width. With ``segmentation`` "rle", and where outlines cross too often, it is the mask's RLE,
    exact to the pixel. ``iscrowd`` is 0 with either. ``area`` counts the mask's pixels; ``bbox`` is
    around the vertices, with two decimals, and ``[0, 0, 0, 0]`` for an empty region.

    >>> from simpleseg_polygon.geometry import Box
    >>> square = coco_annotation(Region((Box(0, 0, 0.5, 1).ring(),)), ImageSize(10, 20))
    >>> square["segmentation"], square["bbox"], square["area"]
    ([[0.0, 0.0, 10.0, 0.0, 10.0, 10.0, 0.0, 10.0]], [0.0, 0.0, 10.0, 10.0], 100)
    """
    runs = region_to_runs(region, size)
    polygons = None if segmentation == "rle" else _flat_polygons(region, size)
    rle = runs_to_rle(runs, size)
    annotation: CocoAnnotation = {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": (
            {"size": list(rle.size), "counts": rle.counts} if polygons is None else polygons
        ),
        "area": runs_area(runs),
        "bbox": _bbox(region, size),
        "iscrowd": 0,
    }
    if score is not None:
        annotation["score"] = score
    return annotation


def coco_dataset(
    file_names: Sequence[str],
    sizes: Sequence[ImageSize],
    annotations: Iterable[CocoAnnotation],
    categories: Mapping[int, str],
) -> CocoDataset:
    """A whole document: the k-th image has id k + 1; annotations are numbered anew from 1.

    ``categories`` maps category ids to names.

    >>> coco_dataset(["a.png"], [ImageSize(10, 20)], [], {1: "dog"})["images"]
    [{'id': 1, 'file_name': 'a.png', 'width': 20, 'height': 10}]
    """
    return {
        "images": [
            {"id": k, "file_name": name, "width": size.width, "height": size.height}
            for k, (name, size) in enumerate(zip(file_names, sizes, strict=True), 1)
        ],
        "annotations": [{**a, "id": k} for k, a in enumerate(annotations, 1)],
        "categories": [{"id": k, "name": name} for k, name in categories.items()],
    }


def _flat_polygons(region: Region, size: ImageSize) -> list[list[float]] | None:
    """None where there are no sensible polygons."""
    try:
        polygons = polygons_px(region, size)
    except TooComplexError:
        return None
    rings = [to_unit(without_hole(polygon), PARTS_PER_PIXEL) for polygon in polygons]
    return [[number for point in ring for number in point] for ring in rings]


def _bbox(region: Region, size: ImageSize) -> list[float]:
    box = region.bounding_box()
    if box is None:
        return [0.0, 0.0, 0.0, 0.0]
    x0, x1 = (round(float(x * size.width), 2) for x in (box.x0, box.x1))
    y0, y1 = (round(float(y * size.height), 2) for y in (box.y0, box.y1))
    return [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)]
