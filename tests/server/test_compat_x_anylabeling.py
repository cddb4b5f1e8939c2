"""X-AnyLabeling's remote server, in the frames that its client 4.2.1 sends; with the client's own
class, which brings Qt along, in ``test_x_anylabeling_client.py``."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from simpleseg_server.engines.scripted import Reply

from .conftest import TRIANGLE

HEADERS = {"Token": "", "Content-Type": "application/json"}
CLOSED_PX = [[20.0, 20.0], [100.0, 20.0], [100.0, 90.0], [20.0, 20.0]]


@pytest.fixture
def client(engine: Any, make_client: Any) -> Any:
    with make_client(engine, enable=("x-anylabeling",)) as client:
        yield client


def body(image64: str, **params: Any) -> dict[str, Any]:
    """What the client's ``predict_shapes`` posts."""
    always = {"conf_threshold": 0.0, "iou_threshold": 0.0, "epsilon_factor": 0.001}
    return {
        "model": "scripted-model",
        "image": f"data:image/png;base64,{image64}",
        "params": always | params,
    }


def shapes(client: TestClient, asked: Any) -> Any:
    answer = client.post("/v1/predict", json=asked, headers=HEADERS)
    assert answer.status_code == 200, answer.text
    assert answer.json()["success"]
    return answer.json()["data"]["shapes"]


def test_the_models_are_listed_with_what_they_take(client: TestClient) -> None:
    listed = client.get("/v1/models", headers=HEADERS).json()
    (name,) = listed["data"]
    assert name == "scripted-model"
    widgets = {widget["name"] for widget in listed["data"][name]["widgets"]}
    assert {"edit_text", "button_send", "button_add_point", "button_add_rect"} <= widgets


def test_openais_list_stays(client: TestClient) -> None:
    assert client.get("/v1/models").json()["object"] == "list"
    assert client.get("/v1/models/scripted-model").json()["object"] == "model"


def test_phrases_become_closed_outlines(client: TestClient, engine: Any, image64: str) -> None:
    engine.replies["cat"] = Reply("[].")
    (shape,) = shapes(client, body(image64, text_prompt="the dog, the cat,the dog"))
    assert (shape["label"], shape["shape_type"]) == ("the dog", "polygon")
    assert (shape["points"], shape["group_id"]) == (CLOSED_PX, None)
    assert shape["score"] == pytest.approx(0.5)
    assert len(engine.requests) == 2


def test_parts_of_one_region_are_a_group(client: TestClient, engine: Any, image64: str) -> None:
    square = "[[0.6, 0.1], [0.9, 0.1], [0.9, 0.4]]"
    engine.default = Reply(TRIANGLE.replace("]]].", f"]], {square}]."))
    one, two = shapes(client, body(image64, text_prompt="dog"))
    assert one["group_id"] == two["group_id"] is not None


def test_marks_are_prompts_in_pixels(client: TestClient, engine: Any, image64: str) -> None:
    marks = [
        {"type": "point", "data": [50, 25], "label": 1},
        {"type": "rectangle", "data": [20, 10, 60, 70], "label": 1},
    ]
    found = shapes(client, body(image64, marks=marks))
    assert [shape["label"] for shape in found] == ["AUTOLABEL_OBJECT"] * 2
    asked = sorted(request.instruction for request in engine.requests)
    assert "at [0.25, 0.25]" in asked[0]
    assert "in the box [0.1, 0.1, 0.3, 0.7]" in asked[1]


def test_the_confidence_slider(client: TestClient, image64: str) -> None:
    assert shapes(client, body(image64, text_prompt="dog", conf_threshold=0.6)) == []


def test_the_fineness_slider(client: TestClient, engine: Any, image64: str) -> None:
    engine.default = Reply("[[[0.1, 0.2], [0.3, 0.201], [0.5, 0.2], [0.5, 0.9]]].")
    fine = shapes(client, body(image64, text_prompt="dog", epsilon_factor=0.0001))
    coarse = shapes(client, body(image64, text_prompt="dog", epsilon_factor=0.01))
    assert [len(shape["points"]) for shape in (*fine, *coarse)] == [5, 4]


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({}, None),  # neither prompt nor prompts: none of the client's fields is at fault
        ({"marks": [{"type": "point", "data": [1, 1], "label": 0}]}, "params.marks[0].label"),
        ({"marks": [{"type": "point", "data": [999, 1], "label": 1}]}, "params"),
        ({"text_prompt": "dog", "reset_tracker": True}, "params.reset_tracker"),
    ],
)
def test_what_is_not_served_is_named(
    client: TestClient, image64: str, params: Any, param: str | None
) -> None:
    refused = client.post("/v1/predict", json=body(image64, **params), headers=HEADERS)
    assert 400 <= refused.status_code < 500
    assert refused.json()["error"]["param"] == param


def test_the_token_is_the_key(engine: Any, make_client: Any, image64: str) -> None:
    with make_client(engine, enable=("x-anylabeling",), api_keys=("sk-any",)) as client:
        for token, status in (("", 401), ("sk-other", 401), ("sk-any", 200)):
            headers = HEADERS | {"Token": token}
            asked = body(image64, text_prompt="dog")
            assert client.post("/v1/predict", json=asked, headers=headers).status_code == status
            assert client.get("/v1/models", headers=headers).status_code == status


def test_it_is_off_unless_enabled(engine: Any, make_client: Any) -> None:
    with make_client(engine) as client:
        assert client.get("/v1/models", headers=HEADERS).json()["object"] == "list"
        assert client.post("/v1/predict", json={}).status_code == 404
