"""Streams of both clients against the real server, and against one that breaks off."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from PIL import Image

from simpleseg import (
    APIConnectionError,
    AsyncSimpleSeg,
    NotFoundError,
    ResponseFormatError,
    ServerUnreachableError,
    SimpleSeg,
    StreamError,
    StreamEvent,
)
from simpleseg.streaming import StreamReader
from simpleseg_server.engines.base import GenerationRequest
from simpleseg_server.engines.scripted import Reply, ScriptedEngine

from .serving import TRIANGLE, serving, wait_until

PICTURE = Image.new("RGB", (80, 40))
TWO = "[[[0.1, 0.1], [0.4, 0.1], [0.4, 0.4]], [[0.6, 0.6], [0.9, 0.6], [0.9, 0.9]]]"

LONG = f"[[{', '.join(f'[0.{i}, 0.{100 - i}]' for i in range(10, 90))}]]"


def _reply(request: GenerationRequest) -> Reply | str:
    if "slow" in request.instruction:
        return Reply(LONG, delay_s=0.05)
    if "trouble" in request.instruction:
        return Reply(TWO, fault="error", fault_after=12)
    return TWO if "pair" in request.instruction else TRIANGLE


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(_reply)


@pytest.fixture
def url(engine: ScriptedEngine) -> Iterator[str]:
    with serving(engine) as url:
        yield url


Read = Callable[..., tuple[list[StreamEvent], Any]]
"""Reads a stream of the server at a URL: all its events, or so many, and the stream object."""


def _sync(url: str, prompt: Any, limit: int = 10_000, **options: Any) -> Any:
    events: list[StreamEvent] = []
    client_options = {"max_retries": options.pop("max_retries", 2)}
    with SimpleSeg(url, **client_options) as client:
        with client.stream(PICTURE, prompt, **options) as stream:
            for event in stream:
                events.append(event)
                if len(events) == limit:
                    break
        return events, stream


def _async(url: str, prompt: Any, limit: int = 10_000, **options: Any) -> Any:
    async def read() -> Any:
        events: list[StreamEvent] = []
        client_options = {"max_retries": options.pop("max_retries", 2)}
        async with AsyncSimpleSeg(url, **client_options) as client:
            async with client.stream(PICTURE, prompt, **options) as stream:
                async for event in stream:
                    events.append(event)
                    if len(events) == limit:
                        break
            return events, stream

    return asyncio.run(read())


@pytest.fixture(params=[_sync, _async], ids=["sync", "async"])
def read(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_deltas_joined_are_the_result(read: Read, url: str) -> None:
    events, stream = read(url, ["the pair", "the kite"], max_points=32)
    assert events[0].type == "segmentation.created"
    assert events[-1].type == "segmentation.completed"
    joined: dict[tuple[int, int], list[Any]] = {}
    for event in events:
        if event.type == "segmentation.points.delta":
            joined.setdefault((event.result, event.polygon), []).extend(event.points)
    pair, kite = stream.results
    assert [joined[0, 0], joined[0, 1]] == [[list(xy) for xy in ring] for ring in pair.polygons]
    assert joined[1, 0] == [list(xy) for xy in kite.polygons[0]]
    assert kite.prompt == "the kite"
    assert kite.mask().any()
    assert kite.overlay()
    assert kite.request_id == stream.request_id is not None
    with SimpleSeg(url) as client:
        assert client.segment(PICTURE, "the kite").polygons == kite.polygons


def test_leaving_a_stream_ends_the_work(read: Read, url: str, engine: ScriptedEngine) -> None:
    events, stream = read(url, "the slow one", limit=2)
    assert len(events) == 2
    with pytest.raises(ValueError, match="not completed"):
        _ = stream.results
    wait_until(lambda: engine.cancelled)


def test_an_error_before_the_stream_has_its_status(read: Read, url: str) -> None:
    with pytest.raises(NotFoundError, match="no such model") as caught:
        read(url, "the kite", model="x" * 9, max_retries=0)
    assert caught.value.request_id


def test_an_error_within_the_stream_is_typed(read: Read, url: str) -> None:
    with pytest.raises(StreamError) as caught:
        read(url, "the trouble")
    assert caught.value.code == "engine_unavailable"
    assert caught.value.request_id


CREATED = (
    b'event: segmentation.created\ndata: {"type": "segmentation.created", "id": "a", "created": 1,'
    b'\r\ndata: "model": "m", "image": {"width": 1, "height": 1, "exif_applied": false}}\n\n'
)


class _Broken(ThreadingHTTPServer):
    """Sends ``body`` as a stream, and hangs up."""

    body = b""
    kind = "text/event-stream"
    asked = 0


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:  # the name that http.server calls
        server: Any = self.server
        server.asked += 1
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", server.kind)
        self.end_headers()
        self.wfile.write(server.body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def broken() -> Iterator[_Broken]:
    server = _Broken(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("body", "kind", "error", "words"),
    [
        (CREATED, "text/event-stream", APIConnectionError, "broke off before its end"),
        (
            b": keep-alive\n\nevent: later\ndata: {}\n\n",
            "text/event-stream",
            APIConnectionError,
            "broke off",
        ),
        (CREATED + b"data: [DONE]\n\n", "text/event-stream", APIConnectionError, "broke off"),
        (b"event: error\ndata: {}\n\n", "text/event-stream", ResponseFormatError, "event error"),
        (b"<html>", "text/html", ResponseFormatError, "text/html"),
        (
            CREATED.replace(b'"width": 1', b'"width": "x"'),
            "text/event-stream",
            ResponseFormatError,
            "segmentation.created.*width",
        ),
    ],
)
def test_a_stream_that_is_none_is_told_and_not_asked_again(
    read: Read, broken: _Broken, body: bytes, kind: str, error: type[Exception], words: str
) -> None:
    broken.body, broken.kind = body, kind
    with pytest.raises(error, match=words):
        read(f"http://127.0.0.1:{broken.server_port}", "the kite")
    assert broken.asked == 1


def test_no_server_is_told(read: Read) -> None:
    with pytest.raises(ServerUnreachableError):
        read("http://127.0.0.1:9", "the kite", max_retries=0)


def test_what_a_later_version_sends_is_passed_over() -> None:
    reader = StreamReader("req_1", 1)
    assert reader.read("segmentation.mood", "{") is None
    assert reader.read("message", "") is None
