"""From every source to every target of the instructions, end to end on the shipped model."""

import base64
from pathlib import Path
from typing import Any

import httpx2
import pytest

from simpleseg.schema import SegmentResponse
from simpleseg_polygon.prompts import TARGETS

SCENE = Path(__file__).parents[2] / "examples/images/scene-04.png"
SOURCES: dict[str, Any] = {
    "text": "the hexagon",
    "point": {"point": [0.5, 0.5]},
    "box": {"box": [0.2, 0.2, 0.8, 0.8]},
    "region": {"polygons": [[[0.3, 0.3], [0.7, 0.3], [0.7, 0.7], [0.3, 0.7]]]},
    "text and box": {"text": "the hexagon", "box": [0.1, 0.1, 0.9, 0.9]},
    "all": {
        "text": "the hexagon",
        "point": [0.5, 0.5],
        "box": [0.2, 0.2, 0.8, 0.8],
        "polygons": [[[0.3, 0.3], [0.7, 0.3], [0.7, 0.7]]],
    },
}
FIELDS = {"region": "polygons", "box": "boxes", "point": "points", "text": "text"}


def _is_of(target: str, value: Any) -> bool:
    """Whether an answer has its target's type, and lies in the image."""
    if target == "text":
        return isinstance(value, str)
    length = {"box": 4, "point": 2, "region": 2}[target]
    shapes = [xy for ring in value for xy in ring] if target == "region" else value
    return all(len(one) == length and all(0 <= x <= 1 for x in one) for one in shapes)


@pytest.mark.parametrize("target", TARGETS)
def test_every_source_leads_to_every_target(demo_url: str, target: str) -> None:
    image = base64.b64encode(SCENE.read_bytes()).decode()
    body = {"image": image, "prompts": list(SOURCES.values()), "task": target}
    response = httpx2.post(f"{demo_url}/segment", json=body, timeout=120)
    assert response.status_code == 200, response.text
    answer = SegmentResponse.model_validate(response.json())
    assert len(answer.results) == len(SOURCES)
    for source, result in zip(SOURCES, response.json()["results"], strict=True):
        assert result["status"] in ("ok", "empty", "truncated"), (source, result)
        assert _is_of(target, result[FIELDS[target]]), (source, result)
    found = [bool(result[FIELDS[target]]) for result in response.json()["results"]]
    assert sum(found) >= len(SOURCES) - 1, found


@pytest.mark.parametrize(
    ("polygons", "code"),
    [
        ([[[0.1, 0.1], [2.0, 0.1], [0.5, 0.5]]], "point_outside_image"),
        ([[[0.1, 0.1], [0.5, 0.5]]], "wrong_length"),
        ([], "wrong_length"),
        ([[[0.1, 0.1]] * 2000], "too_many_points"),
    ],
)
def test_polygons_that_cannot_be_a_region_are_refused(
    client: Any, image64: str, polygons: Any, code: str
) -> None:
    body = {"image": image64, "prompt": {"polygons": polygons}, "task": "box"}
    response = client.post("/segment", json=body)
    assert response.status_code == 422
    assert response.json()["error"]["code"] == code
    assert response.json()["error"]["param"].startswith("prompt.polygons")


def test_a_region_is_worded_as_in_training(client: Any, engine: Any, image64: str) -> None:
    polygons = [[[20.0, 10.0], [100.0, 10.0], [100.0, 50.0]]]
    body = {"image": image64, "prompt": {"polygons": polygons}, "task": "text"}
    assert client.post("/segment", json=body | {"coordinates": "pixel"}).status_code == 200
    words = "the object with the polygon [[[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]]]"
    assert engine.requests[0].instruction == f"Describe {words} in the image."
