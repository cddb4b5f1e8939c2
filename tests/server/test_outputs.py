"""``return`` and ``simplify``: other tools' formats over HTTP."""

import json
from typing import Any

import numpy as np
import pytest
import shapely

from simpleseg.formats import (
    coco_annotation,
    geojson_multipolygon,
    label_studio_results,
    labelme_document,
    labelme_shapes,
    svg_document,
    yolo_line,
)
from simpleseg_polygon.codec import format_region, parse_region
from simpleseg_polygon.geometry import ImageSize, Point, Region
from simpleseg_polygon.raster import region_area_px, region_to_mask
from simpleseg_polygon.rle import Rle, rle_to_mask
from simpleseg_server.engines.scripted import Reply

from .asking import answer, post, refusal

SIZE = ImageSize(100, 200)  # of the picture that the fixtures send
FORMATS = ["svg", "geojson", "coco", "labelme", "label_studio", "yolo"]
OVERLAPPING = (
    "[[[0.1, 0.1], [0.6, 0.1], [0.6, 0.6], [0.1, 0.6]], "
    "[[0.4, 0.4], [0.9, 0.4], [0.9, 0.9], [0.4, 0.9]]]."
)


def ask(client: Any, image64: str, *outputs: str, **fields: Any) -> Any:
    return answer(client, image=image64, **{"prompt": "dog", "return": list(outputs)} | fields)


@pytest.mark.parametrize("output", FORMATS)
def test_each_format_comes_back_alone_as_the_converters_give_it(
    client: Any, engine: Any, png: bytes, image64: str, output: str
) -> None:
    engine.default = Reply(OVERLAPPING)
    region = parse_region(OVERLAPPING).value
    shapes = labelme_shapes(region, SIZE, "dog", group_id=1)
    expected = {
        "svg": svg_document(region, SIZE, "dog"),
        "geojson": geojson_multipolygon(region, SIZE, coordinates="normalized"),
        "coco": coco_annotation(region, SIZE),
        "labelme": labelme_document(shapes, SIZE),
        "label_studio": label_studio_results(region, SIZE, "dog", id_prefix="simpleseg-0"),
        "yolo": yolo_line(region),
    }
    (result,) = ask(client, image64, output)["results"]
    got = result[output]
    for scored in got if isinstance(got, list) else [got]:
        if isinstance(scored, dict):
            assert scored.pop("score", result["score"]) == result["score"]
    assert got == expected[output]
    absent = {"polygons", "bbox", "rle", "png", *FORMATS} - {output}
    assert not absent & result.keys()
    form = client.post(
        "/segment", files={"image": ("x", png)}, data={"prompt": "dog", "return": output}
    )
    assert form.status_code == 200, form.text
    assert form.json()["results"] == ask(client, image64, output)["results"]


def test_scores_are_in_the_formats_that_have_them(client: Any, image64: str) -> None:
    (result,) = ask(client, image64, "coco", "label_studio")["results"]
    assert result["coco"]["score"] == result["label_studio"][0]["score"] == result["score"] == 0.5


def test_geojson_is_in_the_unit_of_coordinates(client: Any, image64: str) -> None:
    for unit, width, height in (("pixel", 200, 100), ("normalized", 1, 1)):
        (result,) = ask(client, image64, "geojson", coordinates=unit)["results"]
        shape = shapely.from_geojson(json.dumps(result["geojson"]))
        assert shape.is_valid
        assert shape.bounds == pytest.approx((0.1 * width, 0.2 * height, 0.5 * width, 0.9 * height))


def test_the_other_formats_keep_their_own_units(client: Any, image64: str) -> None:
    others = [output for output in FORMATS if output != "geojson"]
    answers = [ask(client, image64, *others, coordinates=u) for u in ("pixel", "normalized")]
    assert answers[0]["results"] == answers[1]["results"]
    (result,) = answers[0]["results"]
    assert result["coco"]["bbox"] == [20.0, 20.0, 80.0, 70.0]
    assert result["labelme"]["shapes"][0]["points"][0] == [20.0, 20.0]
    assert result["label_studio"][0]["value"]["points"][0] == [10.0, 20.0]
    assert result["yolo"].startswith("0 0.1 0.2 ")


def test_classes_are_numbered_in_the_order_of_the_prompts(client: Any, image64: str) -> None:
    prompts = ["dog", "cat", "dog", {"point": [0.5, 0.5]}]
    body = ask(client, image64, "coco", "yolo", "labelme", prompt=None, prompts=prompts)
    results = body["results"]
    assert [r["coco"]["id"] for r in results] == [1, 2, 3, 4]
    assert [r["coco"]["category_id"] for r in results] == [1, 2, 1, 3]
    assert [r["yolo"][0] for r in results] == ["0", "1", "0", "2"]
    labels = [r["labelme"]["shapes"][0]["label"] for r in results]
    assert labels == ["dog", "cat", "dog", "object"]


def test_an_absent_object_is_an_empty_shape_in_every_format(
    client: Any, engine: Any, image64: str
) -> None:
    engine.default = Reply("[].")
    (result,) = ask(client, image64, *FORMATS)["results"]
    assert result["status"] == "empty"
    assert result["geojson"] == {"type": "MultiPolygon", "coordinates": []}
    assert (result["coco"]["segmentation"], result["coco"]["area"]) == ([], 0)
    assert result["labelme"]["shapes"] == result["label_studio"] == []
    assert result["yolo"] == ""
    assert "<path" not in result["svg"]


def test_an_answer_that_is_no_region_has_no_formats(client: Any, engine: Any, image64: str) -> None:
    engine.default = Reply("I cannot see it.")
    (result,) = ask(client, image64, *FORMATS)["results"]
    assert result["status"] == "invalid"
    assert [result[output] for output in FORMATS] == [None] * len(FORMATS)


def test_a_scribble_is_told_of_and_shown_as_a_mask(client: Any, engine: Any, image64: str) -> None:
    xy = np.random.default_rng(0).integers(0, 1001, (1000, 2)) / 1000
    region = Region((tuple(Point(x, y) for x, y in xy.tolist()),))
    engine.default = Reply(format_region(region))
    body = ask(client, image64, "rle", *FORMATS, max_points=1024, max_tokens=4096)
    (result,) = body["results"]
    assert "outline_too_complex" in {w["code"] for w in body["warnings"]}
    refused = {output for output in FORMATS if result[output] is None}
    assert refused == {"geojson", "labelme", "label_studio", "yolo"}
    assert result["coco"]["segmentation"] == result["rle"]


def wavy(count: int = 200) -> Region:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    radius = 0.3 + 0.1 * np.sin(6 * angle)
    xy = np.round(0.5 + np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1), 3)
    return Region((tuple(Point(x, y) for x, y in xy.tolist()),))


def test_simplify_gives_all_outputs_the_same_fewer_vertices(
    client: Any, engine: Any, image64: str
) -> None:
    engine.default = Reply(format_region(wavy()))
    outputs = ["polygons", "bbox", "rle", *FORMATS]
    (whole,) = ask(client, image64, *outputs, coordinates="pixel", max_tokens=4096)["results"]
    (simple,) = ask(client, image64, *outputs, coordinates="pixel", simplify=2.0, max_tokens=4096)[
        "results"
    ]
    (ring,) = simple["polygons"]
    assert len(whole["polygons"][0]) == 200
    assert 12 <= len(ring) < 60
    vertices = iter(whole["polygons"][0])
    assert all(vertex in vertices for vertex in ring)
    distance = shapely.distance(
        shapely.LinearRing(ring), shapely.points(whole["polygons"][0])
    ).max()
    assert 0.5 < distance <= 2.01
    region = Region((tuple(Point(x / 200, y / 100) for x, y in ring),))
    mask = region_to_mask(region, SIZE)
    assert np.array_equal(rle_to_mask(Rle.from_coco(simple["rle"])), mask)
    assert simple["area"] == round(region_area_px(region, SIZE) / 20_000, 6)
    assert simple["coco"] == coco_annotation(region, SIZE, score=simple["score"])
    assert simple["svg"].count("L") == len(ring) - 1
    assert len(simple["labelme"]["shapes"][0]["points"]) == len(ring)
    assert len(simple["geojson"]["coordinates"][0][0]) == len(ring) + 1
    assert len(simple["yolo"].split()) == 1 + 2 * len(ring)


def test_a_normalised_tolerance_is_a_share_of_the_longer_side(
    client: Any, engine: Any, png: bytes, image64: str
) -> None:
    engine.default = Reply(format_region(wavy()))
    (pixel,) = ask(client, image64, "rle", coordinates="pixel", simplify=2.0, max_tokens=4096)[
        "results"
    ]
    (share,) = ask(client, image64, "rle", simplify=0.01, max_tokens=4096)["results"]
    assert pixel == share
    data = {"prompt": "dog", "return": "rle", "simplify": "0.01", "max_tokens": "4096"}
    form = client.post("/segment", files={"image": ("x", png)}, data=data)
    assert form.json()["results"] == [share]


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"simplify": -0.1}, 422, "value_out_of_range", "simplify"),
        ({"simplify": 2.0}, 422, "value_out_of_range", "simplify"),
        ({"simplify": "much"}, 400, "type_invalid", "simplify"),
        ({"simplify": 0.1, "task": "box"}, 422, "simplify_not_applicable", None),
        ({"return": ["geojson", "kml"]}, 422, "value_not_allowed", "return[1]"),
        ({"return": ["svg"], "task": "point"}, 422, "return_not_applicable", None),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    client: Any, image64: str, fields: Any, status: int, code: str, param: str | None
) -> None:
    refused = post(client, image=image64, prompt="dog", **fields)
    assert refusal(refused) == (status, code, param)


def test_the_open_api_document_describes_every_format(client: Any) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    returned = json.dumps(schemas["SegmentRequest"]["properties"]["return"])
    for output in FORMATS:
        assert f'"{output}"' in returned
        assert output in schemas["Result"]["properties"]
    assert "simplify" in schemas["SegmentRequest"]["properties"]
    assert schemas["SegmentForm"]["properties"]["simplify"]["type"] == "number"
    polygon = schemas["GeoJsonMultiPolygon"]["properties"]
    assert polygon["type"]["const"] == "MultiPolygon"
    assert schemas["CocoAnnotation"]["properties"]["segmentation"]["anyOf"]
    assert set(schemas["LabelmeDocument"]["required"]) >= {"shapes", "imagePath", "version"}
    assert schemas["LabelStudioResult"]["properties"]["value"]
