"""Life cycle, probes, the error shape on every route, limits, overload, disconnects."""

import asyncio
import http.client
import json
import socket
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from starlette.testclient import TestClient

from simpleseg_server import images
from simpleseg_server.app import create_app
from simpleseg_server.config import Settings
from simpleseg_server.engines.base import GenerationRequest
from simpleseg_server.engines.scripted import Reply


def wait_until(condition: Any, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def test_probes_models_metrics_and_docs(client: Any) -> None:
    for path in ("/livez", "/readyz", "/health"):
        assert client.get(path).json()["status"] == "ready"
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"]) == ("scripted-model", "model")
    assert client.get("/docs").status_code == 200
    document = client.get("/openapi.json").json()
    assert "SegmentRequest" in document["components"]["schemas"]
    metrics = client.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    assert 'engine="scripted"' in metrics.text


def test_metrics_count_what_happened(client: Any, image64: str) -> None:
    client.post("/segment", json={"image": image64, "prompts": ["a", "b"]})
    client.post("/segment", json={"image": image64})
    text = client.get("/metrics").text
    labels = 'model="scripted-model",outcome="ok",route="/segment",status="200"'
    assert f"simpleseg_requests_total{{{labels}}} 1.0" in text
    assert 'simpleseg_parse_total{outcome="ok"} 2.0' in text
    assert 'simpleseg_rejections_total{reason="prompt_missing"} 1.0' in text
    assert 'simpleseg_stage_duration_seconds_count{stage="generate"} 1.0' in text
    assert "simpleseg_in_flight 0.0" in text


def test_hostile_paths_and_methods_add_no_series(client: Any) -> None:
    def series() -> int:
        return len(client.get("/metrics").text.splitlines())

    client.get("/nope")
    client.request("BREW", "/nope")
    client.request("BREW", "/segment")
    series()  # the scrape has series of its own
    before = series()
    for index in range(20):
        client.request(f"BREW{index}", f"/nope/{index}")
    assert series() == before


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "not_found"),
        ("GET", "/segment/", 404, "not_found"),
        ("GET", "/segment", 405, "method_not_allowed"),
        ("DELETE", "/livez", 405, "method_not_allowed"),
        ("POST", "/segment", 415, "content_type_unsupported"),
    ],
)
def test_every_refusal_has_the_one_shape(
    client: Any, method: str, path: str, status: int, code: str
) -> None:
    response = client.request(method, path)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert error["request_id"] == response.headers["x-request-id"]
    assert error.keys() == {"code", "message", "type", "param", "request_id"}


@pytest.mark.parametrize("given", ["abc-1._Z", "x" * 64])
def test_a_harmless_request_id_is_kept(client: Any, given: str) -> None:
    assert client.get("/livez", headers={"X-Request-Id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a/b", "<script>", "é".encode()])
def test_any_other_request_id_is_replaced(client: Any, given: str | bytes) -> None:
    response = client.get("/livez", headers={"X-Request-Id": given})
    assert response.headers["x-request-id"].startswith("req_")


@pytest.mark.server_fault
def test_a_bug_gives_a_constant_500_and_the_next_request_works(
    client: Any, engine: Any, image64: str, caplog: pytest.LogCaptureFixture
) -> None:
    def burst(request: GenerationRequest) -> Reply:
        raise KeyError("canary-4711")

    pick, engine._script = engine._script, burst
    response = client.post("/segment", json={"image": image64, "prompt": "x"})
    engine._script = pick
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert response.json()["error"]["request_id"] == response.headers["x-request-id"]
    assert "4711" not in response.text + caplog.text
    assert "bug request_id=" in caplog.text
    assert client.post("/segment", json={"image": image64, "prompt": "x"}).status_code == 200


def test_not_ready_while_the_engine_loads(make_client: Any, engine: Any, image64: str) -> None:
    engine.start_gate = threading.Event()
    with make_client(engine) as client:
        assert client.get("/livez").json()["status"] == "loading"
        for method, path in [("GET", "/readyz"), ("GET", "/health"), ("POST", "/segment")]:
            response = client.request(method, path)
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "engine_unavailable"
            assert response.headers["retry-after"] == "1"
        engine.start_gate.set()
        wait_until(lambda: client.get("/readyz").status_code == 200)
        response = client.post("/segment", json={"image": image64, "prompt": "x"})
        assert response.status_code == 200


def test_an_engine_that_is_still_loading_can_be_stopped(make_client: Any, engine: Any) -> None:
    engine.start_gate = threading.Event()
    with make_client(engine) as client:
        assert client.get("/readyz").status_code == 503


def test_an_engine_that_cannot_start_is_reported(engine: Any) -> None:
    engine.start_error = RuntimeError("canary-4711")
    failures: list[int] = []
    app = create_app(Settings(), engine, on_engine_failure=lambda: failures.append(1))
    with TestClient(app) as client:
        wait_until(lambda: failures)
        response = client.get("/livez")
        assert response.status_code == 503
        assert "4711" not in response.text


def test_a_dead_engine_is_neither_alive_nor_ready(client: Any, engine: Any, image64: str) -> None:
    engine.default = Reply("[[[", fault="death", fault_after=1)
    response = client.post("/segment", json={"image": image64, "prompt": "x"})
    assert response.status_code == 503
    assert client.get("/livez").status_code == 503
    assert client.get("/readyz").status_code == 503
    assert client.post("/segment", json={}).status_code == 503


def test_an_engine_that_is_away_is_alive_and_comes_back(
    client: Any, engine: Any, image64: str
) -> None:
    engine.is_away = True
    away = client.get("/readyz")
    assert away.status_code == 503
    assert away.json()["error"]["code"] == "engine_unavailable"
    assert "for the moment" in away.json()["error"]["message"]
    live = client.get("/livez")
    assert (live.status_code, live.json()["status"]) == (200, "unavailable")
    assert client.post("/segment", json={"image": image64, "prompt": "a"}).status_code == 503
    engine.is_away = False
    assert client.get("/readyz").status_code == 200
    assert client.post("/segment", json={"image": image64, "prompt": "a"}).status_code == 200


def test_a_body_over_the_limit_is_refused_by_its_declared_length(
    make_client: Any, engine: Any
) -> None:
    with make_client(engine, max_body_bytes=1000) as client:
        response = client.post("/segment", content=b"x" * 1001)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "payload_too_large"
        response = client.get("/livez", headers={"content-length": "9" * 30})
        assert response.status_code == 413


def test_a_chunked_body_is_refused_while_it_streams(make_client: Any, engine: Any) -> None:
    sent = 0

    def chunks() -> Any:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b"x" * 100

    headers = {"content-type": "application/json"}
    with make_client(engine, max_body_bytes=1000) as client:
        response = client.post("/segment", content=chunks(), headers=headers)
    assert response.status_code == 413
    assert response.json()["error"]["request_id"] == response.headers["x-request-id"]


def test_overload_is_503_with_a_wait_and_passes(
    serve_on_socket: Any, engine: Any, image64: str
) -> None:
    engine.default = Reply("[]", fault="hang")
    body = {"image": image64, "prompt": "x"}
    codes: list[int] = []
    with (
        serve_on_socket(engine, max_running_prompts=1, max_queued_requests=1) as url,
        httpx2.Client(base_url=url, timeout=10) as client,
    ):
        wait_until(lambda: client.get("/readyz").status_code == 200)

        def hold() -> None:
            codes.append(httpx2.post(f"{url}/segment", json=body, timeout=10).status_code)

        first = threading.Thread(target=hold)
        first.start()
        wait_until(lambda: engine.running == 1)
        second = threading.Thread(target=hold)
        second.start()
        wait_until(lambda: "simpleseg_queue_depth 1.0" in client.get("/metrics").text)
        response = client.post("/segment", json=body)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "overloaded"
        assert response.json()["error"]["retry_after_ms"] == 1000
        assert response.headers["retry-after"] == "1"
        assert response.headers["retry-after-ms"] == "1000"
        assert client.get("/readyz").status_code == 200
        engine.die()
        first.join(10)
        second.join(10)
    assert codes == [503, 503]


def test_a_client_that_hangs_up_frees_the_engine(
    serve_on_socket: Any, engine: Any, image64: str
) -> None:
    engine.replies = {"hang": Reply("[]", fault="hang")}
    with serve_on_socket(engine) as url, httpx2.Client(base_url=url, timeout=10) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        body = json.dumps({"image": image64, "prompts": ["hang", "hang too"]})
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        connection.request("POST", "/segment", body, {"Content-Type": "application/json"})
        wait_until(lambda: engine.running == 2)
        began = time.monotonic()
        connection.close()
        wait_until(lambda: engine.running == 0)
        assert time.monotonic() - began < 1
        assert len(engine.cancelled) == 2
        wait_until(lambda: "disconnects_total 1.0" in client.get("/metrics").text)
        assert "simpleseg_in_flight 0.0" in client.get("/metrics").text
        response = client.post("/segment", json={"image": image64, "prompt": "x"})
        assert response.status_code == 200


def test_a_client_that_leaves_amid_its_body_frees_its_place(
    serve_on_socket: Any, engine: Any, image64: str
) -> None:
    with serve_on_socket(engine) as url, httpx2.Client(base_url=url, timeout=10) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        client.post("/segment", json={"image": image64, "prompt": "x"})
        head = b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as raw:
            raw.sendall(head + b"Content-Length: 100\r\n\r\n{")
            wait_until(lambda: "simpleseg_in_flight 1.0" in client.get("/metrics").text)
        wait_until(lambda: "simpleseg_in_flight 0.0" in client.get("/metrics").text)


def test_a_body_that_comes_too_slowly_is_408(serve_on_socket: Any, engine: Any) -> None:
    with serve_on_socket(engine, body_timeout_s=0.1) as url:
        wait_until(lambda: httpx2.get(f"{url}/readyz").status_code == 200)
        head = b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), 10) as raw:
            raw.sendall(head + b"Content-Length: 100\r\n\r\n{")
            assert b"408" in raw.recv(65536).split(b"\r\n")[0]


def test_a_large_body_over_the_limit_gets_its_answer_on_a_socket(
    serve_on_socket: Any, engine: Any, image64: str
) -> None:
    headers = {"content-type": "application/json"}
    with (
        serve_on_socket(engine, max_body_bytes=100_000) as url,
        httpx2.Client(base_url=url, timeout=10) as client,
    ):
        wait_until(lambda: client.get("/readyz").status_code == 200)
        for content in (b"x" * 8_000_000, (b"x" * 100_000 for _ in range(80))):
            response = client.post("/segment", content=content, headers=headers)
            assert response.status_code == 413
            assert response.json()["error"]["code"] == "payload_too_large"
        response = client.post("/segment", json={"image": image64, "prompt": "x"})
        assert response.status_code == 200


def test_the_loop_stays_free_while_an_image_is_decoded(
    engine: Any, image64: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(*args: Any) -> Any:
        entered.set()
        assert leave.wait(5)
        return images.decode(*args)

    monkeypatch.setattr("simpleseg_server.image_intake.decode", slow)

    async def scenario() -> int:
        app = create_app(Settings(image_decoding="thread"), engine)
        async with app.router.lifespan_context(app):
            transport = httpx2.ASGITransport(app)
            async with httpx2.AsyncClient(transport=transport, base_url="http://t") as client:
                body = {"image": image64, "prompt": "x"}
                work = asyncio.create_task(client.post("/segment", json=body))
                while not entered.is_set():
                    await asyncio.sleep(0.001)
                assert (await client.get("/livez")).status_code == 200
                leave.set()
                return (await work).status_code

    assert asyncio.run(scenario()) == 200
