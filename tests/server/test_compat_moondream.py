"""Moondream's API, asked by the real ``moondream`` package against a real server."""

import base64
import io
import json
import re
import urllib.error
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import resvg_py
from PIL import Image
from starlette.testclient import TestClient

from simpleseg_polygon.codec import parse_region
from simpleseg_polygon.geometry import ImageSize
from simpleseg_polygon.raster import region_to_mask
from simpleseg_server.engines.scripted import Reply

from .conftest import TRIANGLE, encoded
from .test_fetch_routes import wait_until

md = pytest.importorskip("moondream", reason="pip install --no-deps moondream")

TWO_PARTS = (
    "[[[0.1, 0.1], [0.4, 0.1], [0.4, 0.5], [0.1, 0.5]], "
    "[[0.3, 0.3], [0.3, 0.8], [0.8, 0.8], [0.8, 0.3]]]."
)
"""They overlap, and the second runs the other way round."""
FRAME = (
    "[[[0.1, 0.1], [0.9, 0.1], [0.9, 0.3], [0.1, 0.3]], [[0.7, 0.1], [0.9, 0.1], [0.9, 0.9], "
    "[0.7, 0.9]], [[0.1, 0.7], [0.9, 0.7], [0.9, 0.9], [0.1, 0.9]], [[0.1, 0.1], [0.3, 0.1], "
    "[0.3, 0.9], [0.1, 0.9]]]."
)
"""Four bars around nothing."""
SIZE = ImageSize(100, 200)


@pytest.fixture
def picture(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))


@pytest.fixture
def url(engine: Any, serve_on_socket: Any) -> Iterator[str]:
    with serve_on_socket(engine, enable=("moondream",), api_keys=("sk-moon",)) as url:
        yield url


@pytest.fixture
def moon(url: str) -> Any:
    return md.vl(endpoint=f"{url}/v1", api_key="sk-moon")


def drawn(path: str, box: Any) -> np.ndarray:
    """A path in shares of its box as a mask, painted as Moondream's own engine has it painted."""
    width, height = box["x_max"] - box["x_min"], box["y_max"] - box["y_min"]
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{SIZE.width}" height="{SIZE.height}" '
        f'viewBox="0 0 1 1" preserveAspectRatio="none"><path d="{path}" '
        f'transform="translate({box["x_min"]},{box["y_min"]}) scale({width},{height})"/></svg>'
    )
    png = Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True)))
    return np.asarray(png.convert("RGBA"))[:, :, 3] >= 128


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def refused(ask: Callable[[], Any]) -> tuple[int, Any]:
    """Status and error of the answer."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask()
    with caught.value as answer:
        return answer.code, json.loads(answer.read())["error"]


@pytest.mark.parametrize("text", [TRIANGLE, TWO_PARTS, FRAME], ids=["one", "two", "frame"])
def test_a_path_lies_in_its_box_and_the_box_in_the_image(
    text: str, moon: Any, engine: Any, picture: Image.Image
) -> None:
    engine.default = Reply(text)
    found = moon.segment(picture, "the dog")
    numbers = list(map(float, re.findall(r"[\d.]+", found["path"])))
    assert (min(numbers[::2]), max(numbers[::2])) == (0, 1)
    assert (min(numbers[1::2]), max(numbers[1::2])) == (0, 1)
    truth = region_to_mask(parse_region(text).value, SIZE)
    assert overlap(drawn(found["path"], found["bbox"]), truth) > 0.97
    assert "the dog" in engine.requests[0].instruction


def test_parts_become_one_outline_without_overlap(
    moon: Any, engine: Any, picture: Image.Image
) -> None:
    engine.default = Reply(TWO_PARTS)
    found = moon.segment(picture, "the dog")
    assert found["path"].count("M") == 1
    assert found["bbox"] == {"x_min": 0.1, "y_min": 0.1, "x_max": 0.8, "y_max": 0.8}


def test_a_stream_draws_as_the_engine_writes(moon: Any, engine: Any, picture: Image.Image) -> None:
    engine.default = Reply(TWO_PARTS)
    first, *chunks, last = moon.segment(picture, "the dog", stream=True)
    assert first == {"bbox": {"x_min": 0, "y_min": 0, "x_max": 1, "y_max": 1}}
    assert len(chunks) > 4
    assert last["completed"]
    whole = moon.segment(picture, "the dog")
    assert (last["path"], last["bbox"]) == (whole["path"], whole["bbox"])
    coarse = "".join(chunk["chunk"] for chunk in chunks)
    assert re.fullmatch(r"( M [\d.]+ [\d.]+( L [\d.]+ [\d.]+)+ Z )+", coarse)
    truth = region_to_mask(parse_region(TWO_PARTS).value, SIZE)
    # Where parts overlap that run opposite ways they cancel out, until the last update.
    assert overlap(drawn(coarse, first["bbox"]), truth) > 0.9


def test_a_stream_that_breaks_ends_without_a_last_update(
    moon: Any, engine: Any, picture: Image.Image
) -> None:
    engine.default = Reply(TWO_PARTS, fault="error", fault_after=12)
    updates = list(moon.segment(picture, "the dog", stream=True))
    assert any("chunk" in update for update in updates)
    assert not any("completed" in update for update in updates)


def test_closing_a_stream_frees_the_engine(moon: Any, engine: Any, picture: Image.Image) -> None:
    engine.default = Reply(TWO_PARTS, fault="hang", fault_after=12)
    stream = moon.segment(picture, "the dog", stream=True)
    assert "bbox" in next(stream)
    stream.close()
    wait_until(lambda: engine.running == 0 and len(engine.cancelled) == 1)


def test_what_is_not_there_has_no_path(moon: Any, engine: Any, picture: Image.Image) -> None:
    engine.default = Reply("[].")
    assert moon.segment(picture, "the dog") == {"path": ""}
    *_, last = moon.segment(picture, "the dog", stream=True)
    assert last == {"path": "", "bbox": None, "completed": True}


def test_places_reach_the_model(moon: Any, engine: Any, picture: Image.Image) -> None:
    moon.segment(picture, "dog", spatial_refs=[[0.25, 0.5], [0.1, 0.2, 0.6, 0.8]])
    asked = engine.requests[0].instruction
    assert "dog at [0.25, 0.5] in the box [0.1, 0.2, 0.6, 0.8]" in asked


def test_settings_reach_the_model(moon: Any, engine: Any, picture: Image.Image) -> None:
    moon.segment(picture, "dog", settings={"temperature": 0.5, "max_tokens": 99})
    assert (engine.requests[0].temperature, engine.requests[0].max_tokens) == (0.5, 99)


def test_detect_and_point(moon: Any, engine: Any, picture: Image.Image) -> None:
    engine.default = Reply("[[0.1, 0.2, 0.5, 0.9]].")
    boxes = moon.detect(picture, "dog")["objects"]
    assert boxes == [{"x_min": 0.1, "y_min": 0.2, "x_max": 0.5, "y_max": 0.9}]
    engine.default = Reply("[[0.3, 0.4]].")
    assert moon.point(picture, "dog")["points"] == [{"x": 0.3, "y": 0.4}]
    assert [request.target for request in engine.requests] == ["box", "point"]


def test_a_wrong_key_is_refused(url: str, picture: Image.Image) -> None:
    stranger = md.vl(endpoint=f"{url}/v1", api_key="sk-other")
    assert refused(lambda: stranger.segment(picture, "dog"))[0] == 401


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"spatial_refs": [[0.1, 0.2], [0.3, 0.4]]}, "spatial_refs"),
        ({"spatial_refs": [[0.1, 0.2, 0.3]]}, "spatial_refs"),
        ({"spatial_refs": [[0.1, 7.0]]}, "spatial_refs"),
        ({"settings": {"temperature": 1.0, "top_p": 0.5}}, "settings.top_p"),
        ({"settings": {"max_tokens": 0}}, "settings.max_tokens"),
    ],
)
def test_what_is_not_served_is_named_as_the_client_names_it(
    options: Any, param: str, moon: Any, picture: Image.Image
) -> None:
    status, error = refused(lambda: moon.segment(picture, "dog", **options))
    assert status in (400, 422)
    assert error["param"] == param


def test_our_own_requests_are_answered_beside_it(
    engine: Any, make_client: Any, png: bytes, image64: str
) -> None:
    with make_client(engine, enable=("moondream",)) as client:
        plain = client.post("/v1/segment", json={"image": image64, "prompt": 'the "object"'})
        form = client.post("/v1/segment", files={"image": png}, data={"prompt": "dog"})
    assert plain.json()["results"][0]["prompt"] == 'the "object"'
    assert form.json()["object"] == "segmentation"


def test_it_is_off_unless_enabled(client: TestClient) -> None:
    body = {"image_url": "data:image/png;base64,AAAA", "object": "dog"}
    refused = client.post("/v1/segment", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unknown_parameter")
    assert client.post("/v1/detect", json=body).status_code == 404


def test_its_key_header_counts_only_where_it_is_enabled(
    engine: Any, make_client: Any, image64: str
) -> None:
    headers = {"X-Moondream-Auth": "sk-moon"}
    with make_client(engine, api_keys=("sk-moon",)) as client:
        body = {"image": image64, "prompt": "dog"}
        assert client.post("/v1/segment", json=body, headers=headers).status_code == 401


def test_a_full_queue_is_told_before_the_body_is_read(engine: Any, make_client: Any) -> None:
    settings: Any = {"enable": ("moondream",), "max_running_prompts": 1, "max_queued_requests": 0}
    with make_client(engine, **settings) as client:
        admission = client.app.state.services.segmenter.admission
        with admission.enter():
            refused = client.post("/v1/segment", content=b"no JSON")
    assert refused.status_code == 503
    assert "retry-after" in refused.headers


def test_it_is_counted_as_a_segmentation(engine: Any, make_client: Any, png: bytes) -> None:
    image = (
        f"data:image/png;base64,{base64.b64encode(encoded(Image.open(io.BytesIO(png)))).decode()}"
    )
    with make_client(engine, enable=("moondream",)) as client:
        client.post("/v1/segment", json={"image_url": image, "object": "dog"})
        told = client.get("/metrics").text
    assert re.search(r'simpleseg_parse_total\{outcome="ok"\} 1', told)
