"""An engine that says what a test tells it to, and applications around it."""

import asyncio
import base64
import io
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

from simpleseg_server.app import create_app
from simpleseg_server.config import Settings
from simpleseg_server.engines.base import Capabilities, GenerationRequest
from simpleseg_server.engines.scripted import Reply, ScriptedEngine
from simpleseg_server.fetch import Network

from .processes import demo_server

TRIANGLE = "[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]]."


CAPABILITIES = Capabilities(
    engine="scripted",
    model="scripted-model",
    targets=("region", "box", "point", "text"),
    max_tokens=4096,
    max_concurrency=4,
    max_pixels=64 * 64,
)


class PhraseEngine(ScriptedEngine):
    """Gives the reply of the first phrase in ``replies`` that the instruction holds, else
    ``default``; its start can be made to fail or to wait."""

    def __init__(self, capabilities: Capabilities = CAPABILITIES) -> None:
        super().__init__(self._pick, capabilities=capabilities)
        self.replies: dict[str, Reply] = {}
        self.default = Reply(TRIANGLE, token_length=1, logprob=math.log(0.5))
        self.start_error: Exception | None = None
        self.start_gate: threading.Event | None = None

    def _pick(self, request: GenerationRequest) -> Reply:
        found = [r for phrase, r in self.replies.items() if phrase in request.instruction]
        return found[0] if found else self.default

    async def start(self) -> None:
        if self.start_error is not None:
            raise self.start_error
        while self.start_gate is not None and not self.start_gate.is_set():
            await asyncio.sleep(0.01)
        await super().start()


def encoded(image: Image.Image, format_name: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


@pytest.fixture
def engine() -> PhraseEngine:
    return PhraseEngine()


@pytest.fixture
def png() -> bytes:
    """A red picture, 100 high and 200 wide."""
    return encoded(Image.new("RGB", (200, 100), "red"))


@pytest.fixture
def image64(png: bytes) -> str:
    return base64.b64encode(png).decode()


def _settings(settings: dict[str, Any]) -> Settings:
    """Images are decoded in threads: a process for every application takes its time. Servers in
    processes of their own decode as the default says, and ``tests/reliability`` tests that."""
    return Settings(**{"image_decoding": "thread", **settings})


@contextmanager
def _client(
    engine: PhraseEngine, network: Network | None = None, **settings: Any
) -> Iterator[TestClient]:
    with TestClient(create_app(_settings(settings), engine, network=network)) as client:
        yield client


@pytest.fixture(scope="session")
def demo_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server with the shipped model, in a process of its own."""
    with demo_server(tmp_path_factory.mktemp("demo") / "log") as (_, (url,)):
        yield url


MakeClient = Callable[..., Any]


@pytest.fixture
def make_client() -> MakeClient:
    """Context manager: a client of an application with this engine and these settings."""
    return _client


@pytest.fixture
def client(engine: PhraseEngine) -> Iterator[TestClient]:
    with _client(engine) as client:
        yield client


@contextmanager
def _serve(engine: PhraseEngine, network: Network | None = None, **settings: Any) -> Iterator[str]:
    app = create_app(_settings(settings), engine, network=network)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 10
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def serve_on_socket() -> Callable[..., Any]:
    """Context manager: the URL of a real server with this engine and these settings."""
    return _serve
