"""Roboflow's ``sam3_concept_segment``, in the frames that ``inference-sdk`` 1.8.3 sends; and with
the package itself where it is installed: it wants other versions than we do."""

import io
from typing import Any

import pytest
from PIL import Image
from pycocotools import mask as coco
from starlette.testclient import TestClient

from simpleseg_server.engines.scripted import Reply

from .conftest import TRIANGLE

PATH = "/sam3/concept_segment"
TRIANGLE_PX = [[20, 20], [100, 20], [100, 90]]


@pytest.fixture
def client(engine: Any, make_client: Any) -> Any:
    with make_client(engine, enable=("roboflow",)) as client:
        yield client


def body(image64: str, *prompts: Any, **fields: Any) -> dict[str, Any]:
    """What the package's ``sam3_concept_segment`` posts."""
    return {
        "api_key": None,
        "model_id": "sam3/sam3_final",
        "prompts": list(prompts) or [{"type": "text", "text": "dog"}],
        "output_prob_thresh": 0.5,
        "format": "polygon",
        "image": {"type": "base64", "value": image64},
        **fields,
    }


def test_polygons_in_pixels(client: TestClient, engine: Any, image64: str) -> None:
    engine.replies["cat"] = Reply("[].")
    cat = {"type": "text", "text": "cat"}
    answer = client.post(PATH, json=body(image64, {"type": "text", "text": "dog"}, cat)).json()
    dog, nothing = answer["prompt_results"]
    (found,) = dog["predictions"]
    assert (found["masks"], found["format"]) == ([TRIANGLE_PX], "polygon")
    assert found["confidence"] == pytest.approx(0.5)
    assert dog["echo"] == {"prompt_index": 0, "type": "text", "text": "dog", "num_boxes": 0}
    assert (nothing["prompt_index"], nothing["predictions"]) == (1, [])
    assert answer["time"] > 0


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_run_lengths(client: TestClient, image64: str) -> None:
    answer = client.post(PATH, json=body(image64, format="rle")).json()
    mask = coco.decode(answer["prompt_results"][0]["predictions"][0]["masks"])
    assert mask.shape == (100, 200)
    assert (mask[25, 90], mask[80, 30]) == (1, 0)


def test_a_threshold_for_all_and_for_one(client: TestClient, image64: str) -> None:
    prompts = [{"text": "dog"}, {"text": "cat", "output_prob_thresh": 0.4}]
    asked = body(image64, *prompts, output_prob_thresh=0.6)
    results = client.post(PATH, json=asked).json()["prompt_results"]
    assert [len(result["predictions"]) for result in results] == [0, 1]


@pytest.mark.parametrize(
    "box",
    [{"x": 20, "y": 10, "width": 40, "height": 60}, {"x0": 20, "y0": 10, "x1": 60, "y1": 70}],
)
def test_a_box_in_pixels(client: TestClient, engine: Any, image64: str, box: Any) -> None:
    answer = client.post(PATH, json=body(image64, {"type": "visual", "boxes": [box]}))
    assert answer.json()["prompt_results"][0]["echo"]["num_boxes"] == 1
    assert "in the box [0.1, 0.1, 0.3, 0.7]" in engine.requests[0].instruction


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"nms_iou_threshold": 0.5}, "nms_iou_threshold"),
        ({"format": "json"}, "format"),
        ({"model_id": "yolo"}, "model_id"),
        ({"image": {"type": "base64", "value": "AAAA"}}, "image.value"),
        ({"image": {"type": "url", "value": "http://10.0.0.1/a.png"}}, "image.value"),
        ({"prompts": [{"boxes": [{"x0": 0, "y0": 0, "x1": 9, "y1": 9}] * 2}]}, "prompts[0].boxes"),
        (
            {
                "prompts": [
                    {"boxes": [{"x0": 0, "y0": 0, "x1": 9, "y1": 9}], "box_labels": [0]},
                ]
            },
            "prompts[0].boxes",
        ),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_refusals_have_the_message_that_the_client_shows(
    client: TestClient, image64: str, fields: Any, param: str
) -> None:
    refused = client.post(PATH, json=body(image64) | fields)
    assert 400 <= refused.status_code < 500
    told = refused.json()
    assert told["error"]["param"] == param
    assert told["message"] == told["error"]["message"]


def test_a_busy_server_says_when_to_come_back(
    client: TestClient, engine: Any, image64: str
) -> None:
    engine.default = Reply(TRIANGLE, fault="busy")
    refused = client.post(PATH, json=body(image64))
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "7")


def test_a_prompt_that_fails_is_not_taken_for_an_absent_object(
    client: TestClient, engine: Any, image64: str
) -> None:
    engine.replies["cat"] = Reply(TRIANGLE, fault="error")
    refused = client.post(PATH, json=body(image64, {"text": "dog"}, {"text": "cat"}))
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")


def test_the_real_package(engine: Any, serve_on_socket: Any, png: bytes) -> None:
    sdk = pytest.importorskip("inference_sdk")
    picture = Image.open(io.BytesIO(png))
    with serve_on_socket(engine, enable=("roboflow",), api_keys=("sk-robo",)) as url:
        client = sdk.InferenceHTTPClient(api_url=url, api_key="sk-robo")
        client.configure(sdk.InferenceConfiguration(api_key_transport="header"))
        answer = client.sam3_concept_segment(picture, prompts=[{"type": "text", "text": "dog"}])
        assert answer["prompt_results"][0]["predictions"][0]["masks"] == [TRIANGLE_PX]
        with pytest.raises(Exception, match="unsupported|must be one of"):
            client.sam3_concept_segment(picture, prompts=[{"text": "dog"}], format="json")
