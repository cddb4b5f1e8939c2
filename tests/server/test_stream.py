"""``POST /segment`` with ``stream``: parsed geometry while the answer is written."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from simpleseg.schema import StreamEvent
from simpleseg_polygon.codec import parse_region
from simpleseg_server.engines.base import GenerationRequest
from simpleseg_server.engines.scripted import Reply

from .asking import answer, post, refusal
from .conftest import PhraseEngine

Events = list[tuple[str, dict[str, Any]]]
TWO_PARTS = (
    "[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]], [[0.6, 0.6], [0.9, 0.6], [0.9, 0.9], [0.6, 0.9]]]."
)


def read_events(text: str) -> Events:
    """The events of a complete stream, which ends with the end mark; comments are left out."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert blocks.pop() == "data: [DONE]"
    return [_event(block) for block in blocks]


def _event(block: str) -> tuple[str, dict[str, Any]]:
    name, data = block.splitlines()
    return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def stream(client: Any, **fields: Any) -> Events:
    response = post(client, stream=True, **fields)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return read_events(response.text)


def joined_polygons(events: Events, result: int) -> list[list[list[float]]]:
    polygons: list[list[list[float]]] = []
    for name, data in events:
        if name == "segmentation.points.delta" and data["result"] == result:
            assert data["polygon"] <= len(polygons)
            if data["polygon"] == len(polygons):
                polygons.append([])
            polygons[data["polygon"]] += data["points"]
    return polygons


def without_timings(response: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in response.items() if k not in ("id", "created", "timings_ms")}


def test_the_events_in_order(client: Any, engine: Any, image64: str) -> None:
    engine.default = Reply(TWO_PARTS, token_length=3)
    events = stream(client, image=image64, prompt="x", coordinates="pixel")
    names = [name for name, _ in events]
    assert names[0] == "segmentation.created"
    assert names[-2:] == ["segmentation.result.done", "segmentation.completed"]
    assert names.count("segmentation.polygon.done") == 2
    assert all(data["type"] == name for name, data in events)
    done = [data["n_points"] for name, data in events if name == "segmentation.polygon.done"]
    assert done == [3, 4]
    assert joined_polygons(events, 0)[0] == [[20.0, 20.0], [100.0, 20.0], [100.0, 90.0]]


def test_the_last_event_is_the_plain_answer(client: Any, engine: Any, image64: str) -> None:
    fields = {"image": image64, "prompts": ["x", "y"], "return": ["polygons", "rle"]}
    plain = answer(client, **fields)
    events = stream(client, **fields)
    completed = events[-1][1]["response"]
    assert without_timings(completed) == without_timings(plain)
    assert completed["id"] == events[0][1]["id"]
    assert {"first_token", "first_point"} <= completed["timings_ms"].keys()
    results = {d["result"]["index"]: d["result"] for n, d in events if n.endswith("result.done")}
    assert [results[0], results[1]] == completed["results"]


TEXTS = st.lists(
    st.sampled_from(["[", "]", "[[[", "]]", ", ", "[0.1, 0.2]", "[0.5, 0.2], ", "[0.5, 0.9]", "."]),
    max_size=30,
).map("".join)


WAYS: list[dict[str, Any]] = [
    {"simplify": 0.05},
    {"refine": True},
    {"samples": 3, "seed": 7},
    {"samples": 2, "seed": 7, "refine": True, "simplify": 0.02, "coordinates": "pixel"},
]
OUTPUTS = st.sampled_from([["polygons"], ["bbox"], ["rle"], ["svg", "coco"]])


@given(TEXTS, TEXTS, st.sampled_from([{}, *WAYS]), OUTPUTS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_deltas_join_to_the_region_however_it_was_found(
    make_client: Any, image64: str, text: str, other: str, way: dict[str, Any], outputs: list[str]
) -> None:
    """Answers differ by seed and by what is seen; ``return`` has no part in what is streamed."""

    class Various(PhraseEngine):
        def _pick(self, request: GenerationRequest) -> Reply:
            is_first = request.seed in (None, 7) and request.image_hw3.shape[0] < 60
            return Reply(text if is_first else other, token_length=3)

    fields = {"image": image64, "prompts": ["x", "y"], **way}
    with make_client(Various()) as client:
        plain = answer(client, **fields, **{"return": ["polygons"]})
        events = stream(client, **fields, **{"return": outputs})
    for result in plain["results"]:
        index = result["index"]
        assert joined_polygons(events, index) == result["polygons"]
        done = [d for n, d in events if n == "segmentation.polygon.done" and d["result"] == index]
        assert [d["n_points"] for d in done] == [len(ring) for ring in result["polygons"]]
    for result in events[-1][1]["response"]["results"]:
        assert result.keys() & {"polygons", "bbox", "rle", "svg", "coco"} == set(outputs)


@pytest.mark.parametrize("way", [{}, *WAYS])
def test_what_is_not_asked_for_is_streamed_too(
    client: Any, engine: Any, image64: str, way: dict[str, Any]
) -> None:
    engine.default = Reply(TWO_PARTS)
    events = stream(client, image=image64, prompt="x", **way, **{"return": ["bbox"]})
    assert len(joined_polygons(events, 0)) == 2
    assert "polygons" not in events[-1][1]["response"]["results"][0]


@given(TEXTS, st.integers(1, 9))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_deltas_join_to_the_final_polygons(
    client: Any, engine: Any, image64: str, text: str, token_length: int
) -> None:
    engine.default = Reply(text, token_length=token_length)
    events = stream(client, image=image64, prompt="x")
    (result,) = events[-1][1]["response"]["results"]
    assert joined_polygons(events, 0) == result["polygons"]
    ends = [d["n_points"] for n, d in events if n == "segmentation.polygon.done"]
    assert ends == [len(ring) for ring in parse_region(text).value.parts]


def test_a_refusal_is_a_plain_error(client: Any, engine: Any, image64: str) -> None:
    assert refusal(post(client, stream=True, image=image64))[:2] == (400, "prompt_missing")
    engine.default = Reply("[[[0.1", fault="error")
    response = post(client, stream=True, image=image64, prompt="x")
    assert refusal(response)[:2] == (503, "engine_unavailable")


def test_an_error_after_the_first_point_is_an_event(client: Any, engine: Any, image64: str) -> None:
    engine.default = Reply(TWO_PARTS, token_length=8, fault="error", fault_after=8)
    response = post(client, stream=True, image=image64, prompt="x")
    assert response.status_code == 200
    name, data = read_events(response.text)[-1]
    assert name == "error"
    assert data["error"]["code"] == "engine_unavailable"
    assert data["error"]["request_id"] == response.headers["x-request-id"]


def test_one_prompt_that_fails_does_not_end_the_stream(
    client: Any, engine: Any, image64: str
) -> None:
    engine.replies = {"bad": Reply("[[[0.1", fault="error")}
    events = stream(client, image=image64, prompts=["bad", "good"])
    statuses = [r["status"] for r in events[-1][1]["response"]["results"]]
    assert statuses == ["invalid", "ok"]


def test_a_form_may_ask_for_a_stream(client: Any, png: bytes) -> None:
    response = client.post("/segment", files={"image": png}, data={"prompt": "x", "stream": "true"})
    assert read_events(response.text)[-1][0] == "segmentation.completed"


def test_metrics_count_a_stream_once(client: Any, image64: str) -> None:
    stream(client, image=image64, prompt="x")
    assert 'simpleseg_parse_total{outcome="ok"} 1.0' in client.get("/metrics").text


def _lines(connection: socket.socket) -> Iterator[tuple[float, str]]:
    with connection.makefile("rb") as file:
        for line in file:
            yield time.monotonic(), line.decode().rstrip()


def _ask(base_url: str, image64: str, **fields: Any) -> socket.socket:
    body = json.dumps({"image": image64, "prompt": "x", "stream": True, **fields}).encode()
    address = urlsplit(base_url)
    connection = socket.create_connection((address.hostname, address.port), timeout=20)
    head = (
        "POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


def test_points_arrive_before_the_answer_ends(
    engine: Any, serve_on_socket: Any, image64: str
) -> None:
    engine.default = Reply(TWO_PARTS, token_length=8, delay_s=0.05)
    with serve_on_socket(engine) as base_url, _ask(base_url, image64) as connection:
        times = {line: at for at, line in _lines(connection) if line.startswith("event:")}
    spread = times["event: segmentation.completed"] - times["event: segmentation.created"]
    assert spread > 0.2  # half of what the engine's pauses add up to after the first point


def test_silence_is_filled_with_comments(engine: Any, serve_on_socket: Any, image64: str) -> None:
    engine.default = Reply(TWO_PARTS, token_length=60, delay_s=0.4)
    with (
        serve_on_socket(engine, keep_alive_s=0.1) as base_url,
        _ask(base_url, image64) as connection,
    ):
        lines = [line for _, line in _lines(connection)]
    assert ": keep-alive" in lines
    assert "data: [DONE]" in lines


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


def test_a_client_that_leaves_frees_the_engine(
    engine: Any, serve_on_socket: Any, image64: str
) -> None:
    engine.default = Reply(TWO_PARTS, token_length=40, fault="hang", fault_after=2)
    with serve_on_socket(engine) as base_url:
        connection = _ask(base_url, image64)
        for _, line in _lines(connection):
            if line == "event: segmentation.points.delta":
                break
        connection.close()
        wait_for(lambda: engine.running == 0)
        assert len(engine.cancelled) == 1
        wait_for(lambda: "disconnects_total 1.0" in httpx2.get(f"{base_url}/metrics").text)


@pytest.mark.parametrize("task", ["box", "point", "text"])
def test_other_tasks_stream_their_results(
    client: Any, engine: Any, image64: str, task: str
) -> None:
    engine.default = Reply("[[0.1, 0.2, 0.3, 0.4]]." if task == "box" else "[[0.5, 0.25]].")
    names = [name for name, _ in stream(client, image=image64, prompt="x", task=task)]
    assert names == ["segmentation.created", "segmentation.result.done", "segmentation.completed"]


def test_every_event_is_in_the_contract(client: Any, engine: Any, image64: str) -> None:
    engine.default = Reply(TWO_PARTS)
    adapter: TypeAdapter[StreamEvent] = TypeAdapter(StreamEvent)
    for name, data in stream(client, image=image64, prompt="x"):
        assert adapter.validate_python(data).type == name


def test_a_simplified_stream_joins_to_the_simplified_polygons(
    client: Any, engine: Any, image64: str
) -> None:
    engine.default = Reply("[[[0.1, 0.2], [0.3, 0.201], [0.5, 0.2], [0.5, 0.9]]].")
    events = stream(client, image=image64, prompt="x", simplify=0.01)
    (result,) = events[-1][1]["response"]["results"]
    assert joined_polygons(events, 0) == result["polygons"]
    assert len(result["polygons"][0]) == 3


def test_a_long_wait_for_the_first_point_is_no_silence(
    engine: Any, serve_on_socket: Any, image64: str
) -> None:
    """Several answers are compared before anything is told."""
    engine.default = Reply(TWO_PARTS, token_length=40, delay_s=0.2)
    with (
        serve_on_socket(engine, keep_alive_s=0.05) as base_url,
        _ask(base_url, image64, samples=2) as connection,
    ):
        lines = [line for _, line in _lines(connection)]
    lines = lines[lines.index("event: segmentation.created") :]
    assert lines[0] == "event: segmentation.created"
    assert ": keep-alive" in lines[: lines.index("event: segmentation.points.delta")]
    assert lines.index("data: [DONE]") > lines.index("event: segmentation.completed")


def test_what_fails_late_is_an_event(engine: Any, make_client: Any, image64: str) -> None:
    """A failure that comes after the headers, though before the first point."""
    engine.default = Reply(TWO_PARTS, delay_s=0.3, fault="error", fault_after=1)
    with make_client(engine, keep_alive_s=0.05) as patient:
        events = stream(patient, image=image64, prompt="x")
    assert [name for name, _ in events] == ["segmentation.created", "error"]
    assert events[-1][1]["error"]["code"] == "engine_unavailable"
