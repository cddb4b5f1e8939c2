"""``/segment`` inside another server, as vLLM's plugin puts it there; here the server is a stand-in
with routes, errors and a life of its own. With vLLM itself: ``engines/test_vllm_servers.py``."""

from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import entry_points
from typing import Any

import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.testclient import TestClient

from simpleseg_server.config import ConfigError
from simpleseg_server.engines.base import EngineError
from simpleseg_server.engines.scripted import Reply
from simpleseg_server.vllm_plugin import SegmentPlugin

from .asking import answer, post, refusal
from .conftest import PhraseEngine

Host = Callable[..., Any]


Log = list[str]
"""What happened, in order."""


async def _theirs(request: Request, error: Exception) -> Response:
    return JSONResponse({"theirs": type(error).__name__}, 418)


def _host(plugin: SegmentPlugin, client: object, keys: list[str], log: Log) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        log.append("host starts")
        await plugin.init_state(client, app.state, app.state.args)
        yield
        log.append("host ends")

    app = FastAPI(lifespan=lifespan)
    app.state.args = Namespace(api_key=keys)

    @app.get("/v1/models")
    async def models() -> dict[str, str]:
        return {"theirs": "models"}

    @app.get("/v1/broken")
    async def broken() -> None:
        raise ValueError

    plugin.attach_router(app)
    app.add_exception_handler(ValueError, _theirs)
    app.add_exception_handler(404, _theirs)
    return app


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def host(engine: PhraseEngine, registry: CollectorRegistry, log: Log) -> Host:
    """Context manager: a client of another server that has loaded the plugin."""

    @contextmanager
    def start(keys: tuple[str, ...] = ()) -> Iterator[TestClient]:
        clients: list[object] = []

        def make_engine(client: object) -> PhraseEngine:
            clients.append(client)
            return engine

        given = object()
        app = _host(SegmentPlugin(make_engine, registry), given, list(keys), log)
        with TestClient(app, raise_server_exceptions=False) as client:
            assert clients == [given]
            yield client

    return start


def test_both_servers_answer(host: Host, image64: str) -> None:
    with host() as client:
        assert answer(client, image=image64, prompt="x")["results"][0]["status"] == "ok"
        response = client.post("/v1/segment", json={"image": image64, "prompt": "x"})
        assert response.status_code == 200
        assert "x-request-id" in response.headers
        assert client.get("/v1/models").json() == {"theirs": "models"}


def test_each_keeps_its_errors(host: Host, engine: PhraseEngine, image64: str) -> None:
    with host() as client:
        refused = post(client, image=image64, prompt="x", mood="good")
        assert refusal(refused) == (400, "unknown_parameter", "mood")
        engine.default = Reply("x", fault="error")
        assert refusal(post(client, image=image64, prompt="x"))[:2] == (503, "engine_unavailable")
        assert client.get("/v1/broken").json() == {"theirs": "ValueError"}
        theirs = client.get("/nowhere")
        assert (theirs.status_code, "x-request-id" in theirs.headers) == (418, False)


@pytest.mark.server_fault
def test_a_bug_of_ours_is_told_in_our_shape(
    host: Host, engine: PhraseEngine, image64: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise ValueError("which the other server has a handler for")

    monkeypatch.setattr(engine, "_reply", fail)
    with host() as client:
        assert refusal(post(client, image=image64, prompt="x"))[:2] == (500, "internal_error")


def test_bodies_are_bounded(host: Host, image64: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMPLESEG_MAX_BODY_BYTES", "100")
    with host() as client:
        refused = post(client, image=image64 + "A" * 100, prompt="x")
        assert refusal(refused)[:2] == (413, "payload_too_large")


@pytest.mark.parametrize("variable", ["SIMPLESEG_MAX_PROMTS=3", "SIMPLESEG_ENABLE=moondream"])
def test_settings_come_from_the_environment(
    host: Host, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(*variable.split("="))
    with pytest.raises(ConfigError), host():
        pass


@pytest.mark.parametrize("from_environment", [False, True])
def test_the_other_server_s_keys_guard_both_paths(
    host: Host, image64: str, monkeypatch: pytest.MonkeyPatch, from_environment: bool
) -> None:
    if from_environment:
        monkeypatch.setenv("VLLM_API_KEY", "secret")
    with host(() if from_environment else ("secret",)) as client:
        body = {"image": image64, "prompt": "x"}
        for path in ("/segment", "/v1/segment"):
            assert refusal(client.post(path, json=body))[:2] == (401, "invalid_api_key")
            headers = {"Authorization": "Bearer secret"}
            assert client.post(path, json=body, headers=headers).status_code == 200


def test_the_document_describes_both(host: Host) -> None:
    with host() as client:
        document = client.get("/openapi.json").json()
    assert {"/segment", "/v1/models"} <= document["paths"].keys()
    assert "SegmentRequest" in document["components"]["schemas"]


def test_our_metrics_join_the_other_server_s(
    host: Host, registry: CollectorRegistry, image64: str
) -> None:
    with host() as client:
        answer(client, image=image64, prompt="x")
    requests = next(m for m in registry.collect() if m.name == "simpleseg_requests")
    [counted] = [one for one in requests.samples if one.name == "simpleseg_requests_total"]
    assert (counted.labels["route"], counted.labels["status"]) == ("/segment", "200")
    assert "simpleseg_completion_tokens_count 1.0" in generate_latest(registry).decode()


def test_it_ends_before_the_server_around_it(
    host: Host, engine: PhraseEngine, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def close() -> None:
        log.append("engine closes")

    monkeypatch.setattr(engine, "close", close)
    with host():
        pass
    assert log == ["host starts", "engine closes", "host ends"]


def test_a_model_that_it_cannot_serve_stops_the_start(host: Host, engine: PhraseEngine) -> None:
    engine.start_error = EngineError("not a model that writes polygons")
    with pytest.raises(RuntimeError, match="cannot serve"), host():
        pass


def test_it_is_found_by_its_entry_point() -> None:
    found = entry_points(group="vllm.endpoint_plugins", name="simpleseg")
    if not found:
        pytest.skip("the distribution is not installed, only its folders are on the path")
    assert {entry.load() for entry in found} == {SegmentPlugin}
    assert SegmentPlugin().required_tasks == ("generate",)
