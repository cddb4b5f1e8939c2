"""Regions in other tools' formats, read back by independent readers and compared as masks."""

import json
import xml.etree.ElementTree as ET
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import resvg_py
import shapely
from hypothesis import given, settings
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO

from simpleseg import Segmentation
from simpleseg.formats import (
    coco_annotation,
    coco_dataset,
    geojson_multipolygon,
    label_studio_results,
    labelme_document,
    labelme_shapes,
    svg_document,
    yolo_line,
)
from simpleseg_polygon.geometry import ImageSize, Region
from simpleseg_polygon.raster import region_area_px, region_to_mask, region_to_rle
from simpleseg_polygon.unite import TooComplexError

from .shapes import (
    NAMED,
    OVERLAPPING,
    SIZE,
    SQUARE,
    TWO_PARTS,
    WITH_HOLE,
    even_odd_mask,
    in_pixels,
    regions,
    scribble,
    worst_error_px,
)

# pycocotools reads its own arrays in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ROUNDING_PX = 0.02
"""Vertices move by half a hundredth of a pixel along each axis, crossings by little more."""

all_named = pytest.mark.parametrize("region", NAMED.values(), ids=NAMED)


def coco_rings(region: Region) -> list[list[list[float]]]:
    polygons: Any = coco_annotation(region, SIZE)["segmentation"]
    return [np.reshape(polygon, (-1, 2)).tolist() for polygon in polygons]


def yolo_ring(region: Region) -> list[list[list[float]]]:
    """The one ring, in pixels."""
    numbers = [float(word) for word in yolo_line(region).split()[1:]]
    return [in_pixels(np.reshape(numbers, (-1, 2)).tolist())] if numbers else []


def labelme_rings(region: Region) -> list[list[list[float]]]:
    return [shape["points"] for shape in labelme_shapes(region, SIZE, "x")]


def label_studio_rings(region: Region) -> list[list[list[float]]]:
    results = label_studio_results(region, SIZE, "x")
    return [in_pixels(result["value"]["points"], 100) for result in results]


@pytest.mark.parametrize("rings_of", [coco_rings, yolo_ring, labelme_rings, label_studio_rings])
@settings(max_examples=60, deadline=None)
@given(region=regions())
def test_rings_of_every_format_fill_to_the_mask(rings_of: Any, region: Region) -> None:
    mask = even_odd_mask(rings_of(region))
    assert worst_error_px(mask, region) <= ROUNDING_PX


@settings(max_examples=60, deadline=None)
@given(regions())
def test_geojson_is_a_valid_multipolygon_of_the_same_mask(region: Region) -> None:
    for unit, width, height in (("pixel", 1, 1), ("normalized", SIZE.width, SIZE.height)):
        geometry: Any = geojson_multipolygon(region, SIZE, coordinates=unit)  # type: ignore[arg-type]
        shape = shapely.from_geojson(json.dumps(geometry))
        assert isinstance(shape, shapely.MultiPolygon)
        assert shape.is_valid, shapely.is_valid_reason(shape)
        row, column = np.mgrid[: SIZE.height, : SIZE.width] + 0.5
        mask = shapely.contains_xy(shape, column / width, row / height)
        assert worst_error_px(mask, region) <= ROUNDING_PX


@settings(max_examples=60, deadline=None)
@given(regions())
def test_an_svg_renderer_paints_the_mask(region: Region) -> None:
    # It paints what is half covered, we what is covered at its centre.
    assert worst_error_px(rendered(svg_document(region, SIZE)), region) <= 0.5


@settings(max_examples=60, deadline=None)
@given(regions())
def test_pycocotools_fills_polygons_to_the_mask(region: Region) -> None:
    # It rounds outlines to a fifth of a pixel.
    assert worst_error_px(pycocotools_mask(region, "polygons"), region, coco_rings(region)) <= 0.5


@settings(max_examples=30, deadline=None)
@given(regions())
def test_pycocotools_reads_the_rle_as_the_mask(region: Region) -> None:
    mask = pycocotools_mask(region, "rle")
    assert np.array_equal(mask, region_to_mask(region, SIZE))


def rendered(svg: str) -> NDArray[np.bool_]:
    """Where a renderer covers at least half of a pixel; the drawing is half transparent."""
    png = Image.open(BytesIO(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True)))
    assert png.size == (SIZE.width, SIZE.height)
    return np.asarray(png.convert("RGBA"))[:, :, 3] >= 64


def pycocotools_mask(region: Region, segmentation: Any) -> NDArray[np.bool_]:
    coco = COCO()
    annotation = coco_annotation(region, SIZE, segmentation=segmentation)
    coco.dataset = json.loads(json.dumps(coco_dataset(["a"], [SIZE], [annotation], {1: "x"})))
    coco.createIndex()
    if not coco.anns[1]["segmentation"]:
        return np.zeros(SIZE, np.bool_)
    return np.asarray(coco.annToMask(coco.anns[1]), np.bool_)


@all_named
def test_outlines_follow_rfc_7946(region: Region) -> None:
    for polygon in geojson_multipolygon(region, SIZE)["coordinates"]:
        assert all(ring[0] == ring[-1] and len(ring) >= 4 for ring in polygon)
        outline, *holes = map(shapely.LinearRing, polygon)
        assert outline.is_ccw
        assert not any(hole.is_ccw for hole in holes)


def test_parts_become_polygons_and_what_they_enclose_a_hole() -> None:
    counts = {
        name: [len(p) for p in geojson_multipolygon(region, SIZE)["coordinates"]]
        for name, region in NAMED.items()
    }
    assert counts == {
        "square": [1],
        "two parts": [1, 1],
        "overlapping": [1],
        "with a hole": [2],
        "bow tie": [1, 1],
        "empty": [],
    }


def test_a_region_without_overlap_keeps_its_vertices() -> None:
    square = [[22.5, 15.0], [67.5, 15.0], [67.5, 45.0], [22.5, 45.0]]
    assert geojson_multipolygon(SQUARE, SIZE)["coordinates"] == [[[*square, square[0]]]]
    assert labelme_rings(SQUARE) == [square]
    assert coco_annotation(SQUARE, SIZE)["segmentation"] == [sum(square, [])]
    assert yolo_line(SQUARE, 7) == "7 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75"
    (result,) = label_studio_results(SQUARE, SIZE, "x")
    percent = [[25.0, 25.0], [75.0, 25.0], [75.0, 75.0], [25.0, 75.0]]
    assert result["value"] == {"points": percent, "closed": True, "polygonlabels": ["x"]}


@all_named
def test_a_coco_document_loads_from_a_file(region: Region, tmp_path: Path) -> None:
    annotations = [coco_annotation(region, SIZE, category_id=k, score=0.5) for k in (1, 2)]
    document = coco_dataset(["a.png"], [SIZE], annotations, {1: "dog", 2: "cat"})
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(document))
    coco = COCO(str(path))
    assert coco.getAnnIds(catIds=coco.getCatIds(catNms=["cat"])) == [2]
    image = coco.imgs[1]
    assert ImageSize(image["height"], image["width"]) == SIZE
    annotation = coco.anns[2]
    assert annotation["iscrowd"] == 0
    assert annotation["area"] == region_area_px(region, SIZE)
    assert coco.loadRes(str(_results_file(tmp_path, annotations))).getAnnIds() == [1, 2]


def _results_file(folder: Path, annotations: list[Any]) -> Path:
    """The file of results that pycocotools evaluates; it takes masks as RLE."""
    path = folder / "results.json"
    rle = region_to_rle(SQUARE, SIZE).to_coco()
    path.write_text(json.dumps([{**a, "segmentation": rle} for a in annotations]))
    return path


def test_coco_boxes_are_corner_and_size_in_pixels() -> None:
    assert coco_annotation(SQUARE, SIZE)["bbox"] == [22.5, 15.0, 45.0, 30.0]
    assert coco_annotation(Region(()), SIZE)["bbox"] == [0.0, 0.0, 0.0, 0.0]


def test_labelme_groups_the_parts_of_one_object() -> None:
    groups = [s["group_id"] for s in labelme_shapes(TWO_PARTS, SIZE, "dog", group_id=3)]
    assert groups == [3, 3]
    assert [s["group_id"] for s in labelme_shapes(SQUARE, SIZE, "dog", group_id=3)] == [None]
    document = labelme_document([], SIZE, "a.png")
    assert (document["imageHeight"], document["imageWidth"]) == SIZE
    assert document["imagePath"] == "a.png"


def test_label_studio_ids_differ_and_scores_are_told() -> None:
    results = label_studio_results(TWO_PARTS, SIZE, "dog", score=0.5, id_prefix="p")
    assert [r["id"] for r in results] == ["p-0", "p-1"]
    assert [r["score"] for r in results] == [0.5, 0.5]
    assert "score" not in label_studio_results(SQUARE, SIZE, "dog")[0]


def test_yolo_joins_parts_at_their_nearest_vertices() -> None:
    (ring,) = yolo_ring(TWO_PARTS)
    steps = [(tuple(a), tuple(b)) for a, b in pairwise(ring)]
    bridge = (tuple(in_pixels([[0.4, 0.4]])[0]), tuple(in_pixels([[0.6, 0.55]])[0]))
    assert bridge in steps
    assert bridge[::-1] in steps
    assert len(ring) == 8 + 2


def test_labels_cannot_break_out_of_svg() -> None:
    label = "</title><script>alert(1)</script>\x00\ud800&\ufffe"
    root = ET.fromstring(svg_document(SQUARE, SIZE, label, color='"><script/>'))
    tags = [element.tag.rpartition("}")[2] for element in root.iter()]
    assert tags == ["svg", "g", "title", "path"]
    assert root[0][0].text == "</title><script>alert(1)</script>&"


def test_svg_has_the_image_s_size_and_frame() -> None:
    root = ET.fromstring(svg_document(SQUARE, SIZE))
    assert root.attrib == {"width": "90", "height": "60", "viewBox": "0 0 90 60"}


def test_a_scribble_is_an_rle_in_coco_and_refused_elsewhere() -> None:
    region = scribble()
    segmentation: Any = coco_annotation(region, SIZE)["segmentation"]
    assert segmentation == region_to_rle(region, SIZE).to_coco()
    for convert in (
        lambda: geojson_multipolygon(region, SIZE),
        lambda: labelme_shapes(region, SIZE, "x"),
        lambda: label_studio_results(region, SIZE, "x"),
        lambda: yolo_line(region),
    ):
        with pytest.raises(TooComplexError):
            convert()


@pytest.mark.parametrize("region", [OVERLAPPING, WITH_HOLE], ids=["overlapping", "with a hole"])
def test_results_give_what_the_converters_give(region: Region) -> None:
    result = Segmentation("dog", "ok", region, region.bounding_box(), 0.5, SIZE, index=2)
    assert result.to_svg() == svg_document(region, SIZE, "dog")
    assert result.to_geojson() == geojson_multipolygon(region, SIZE)
    shares = geojson_multipolygon(region, SIZE, coordinates="normalized")
    assert result.to_geojson(coordinates="normalized") == shares
    annotation = coco_annotation(region, SIZE, annotation_id=3, category_id=4, score=0.5)
    assert result.to_coco(category_id=4) == annotation
    shapes = labelme_shapes(region, SIZE, "dog", group_id=3)
    assert result.to_labelme("a.png") == labelme_document(shapes, SIZE, "a.png")
    results = label_studio_results(
        region, SIZE, "dog", score=0.5, from_name="tag", id_prefix="simpleseg-2"
    )
    assert result.to_label_studio(from_name="tag") == results
    assert result.to_yolo(5) == yolo_line(region, 5)


def test_what_was_asked_without_a_text_is_an_object() -> None:
    result = Segmentation(None, "ok", SQUARE, None, None, ImageSize(10, 10))
    assert result.to_labelme()["shapes"][0]["label"] == "object"
