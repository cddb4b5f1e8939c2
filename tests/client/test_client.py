"""Both clients against a server on a real socket that answers by script."""

import asyncio
import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest
from PIL import Image

from simpleseg import (
    APITimeoutError,
    AsyncSimpleSeg,
    BadRequestError,
    InvalidInputError,
    RetryBudget,
    Segmentation,
    ServerUnreachableError,
    ServiceUnavailableError,
    SimpleSeg,
)

PICTURE = Image.new("RGB", (40, 20), (90, 120, 150))
ERROR = {"code": "overloaded", "message": "later", "type": "x", "request_id": "req_2"}


@dataclass(frozen=True)
class Answer:
    """One scripted answer: after ``delay_s``, or no answer at all where ``status`` is None."""

    status: int | None = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0


@dataclass
class Script:
    """What the server will answer, in order, and what it was asked."""

    answers: list[Answer] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""


def _body(request: dict[str, Any]) -> dict[str, Any]:
    results = [
        {
            "index": index,
            "prompt": prompt,
            "status": "ok",
            "finish_reason": "stop",
            "score": 0.9,
            "bbox": [0.25, 0.25, 0.75, 0.75],
            "polygons": [[[0.25, 0.25], [0.75, 0.25], [0.5, 0.75]]],
        }
        for index, prompt in enumerate(request["prompts"])
    ]
    return {
        "id": "seg_1",
        "created": 1,
        "model": "test",
        "image": {"width": 40, "height": 20, "exif_applied": False},
        "results": results,
        "usage": dict.fromkeys(
            ("prompt_tokens", "completion_tokens", "total_tokens", "forward_passes"), 1
        ),
        "timings_ms": {"total": 1.0},
        "warnings": [],
    }


def _handler(script: Script) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name that http.server calls
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            script.bodies.append(request)
            script.headers.append({k.lower(): v for k, v in self.headers.items()})
            answer = script.answers.pop(0) if script.answers else Answer()
            time.sleep(answer.delay_s)
            if answer.status is None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            body = _body(request) if answer.status == 200 else {"error": ERROR}
            content = json.dumps(body).encode()
            with suppress(ConnectionError):  # the client may have stopped waiting
                self._send(answer, content)

        def _send(self, answer: Answer, content: bytes) -> None:
            assert answer.status is not None
            self.send_response(answer.status)
            for name, value in {"content-length": str(len(content)), **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("x-request-id", self.headers["x-request-id"])
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@pytest.fixture
def script() -> Iterator[Script]:
    script = Script()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(script))
    script.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


Segment = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def segment(request: pytest.FixtureRequest, script: Script) -> Segment:
    """``segment(prompt, client options, **segment options)`` through either client."""

    def sync(prompt: Any, client: dict[str, Any] | None = None, **options: Any) -> Any:
        with SimpleSeg(**({"base_url": script.url} | (client or {}))) as connection:
            return connection.segment(PICTURE, prompt, **options)

    async def in_loop(prompt: Any, client: dict[str, Any] | None, options: Any) -> Any:
        async with AsyncSimpleSeg(**({"base_url": script.url} | (client or {}))) as connection:
            return await connection.segment(PICTURE, prompt, **options)

    def run(prompt: Any, client: dict[str, Any] | None = None, **options: Any) -> Any:
        return asyncio.run(in_loop(prompt, client, options))

    return sync if request.param == "sync" else run


BUSY = Answer(503, {"retry-after-ms": "1"})


def test_one_phrase_gives_one_result(segment: Segment, script: Script) -> None:
    result = segment("the kite", max_points=64)
    assert isinstance(result, Segmentation)
    assert (result.prompt, result.status, result.size_hw) == ("the kite", "ok", (20, 40))
    assert result.mask().shape == (20, 40)
    assert result.overlay().size == (1040, 520)
    assert result.request_id == script.headers[0]["x-request-id"]
    assert script.bodies[0]["max_points"] == 64


def test_several_phrases_give_results_in_order(segment: Segment) -> None:
    results = segment(["the kite", "the dog"])
    assert [(result.index, result.prompt) for result in results] == [
        (0, "the kite"),
        (1, "the dog"),
    ]


def test_the_picture_arrives(segment: Segment, script: Script) -> None:
    segment("the kite")
    sent = base64.b64decode(script.bodies[0]["image"]["base64"])
    assert Image.open(io.BytesIO(sent)).tobytes() == PICTURE.tobytes()


def test_an_overload_is_waited_for_under_the_same_id(segment: Segment, script: Script) -> None:
    script.answers = [BUSY, BUSY]
    assert segment("the kite").status == "ok"
    assert len({headers["x-request-id"] for headers in script.headers}) == 1
    assert len(script.headers) == 3


def test_the_third_overload_is_raised(segment: Segment, script: Script) -> None:
    script.answers = [BUSY, BUSY, BUSY]
    with pytest.raises(ServiceUnavailableError) as caught:
        segment("the kite")
    assert caught.value.code == "overloaded"
    assert script.answers == []


def test_a_lost_connection_is_tried_again(segment: Segment, script: Script) -> None:
    script.answers = [Answer(None)]
    assert segment("the kite").status == "ok"


def test_a_bad_request_is_not_repeated(segment: Segment, script: Script) -> None:
    script.answers = [Answer(400)]
    with pytest.raises(BadRequestError):
        segment("the kite")
    assert len(script.bodies) == 1


def test_a_slow_answer_is_a_timeout_and_is_not_repeated(segment: Segment, script: Script) -> None:
    script.answers = [Answer(delay_s=0.5)]
    with pytest.raises(APITimeoutError):
        segment("the kite", timeout=0.05)
    assert len(script.bodies) == 1


@pytest.mark.catalogue("K1")
def test_retries_come_from_one_budget(segment: Segment, script: Script) -> None:
    budget = RetryBudget(capacity=1, earned=0.5)
    script.answers = [BUSY, BUSY]
    with pytest.raises(ServiceUnavailableError):
        segment("the kite", {"retry_budget": budget})
    assert len(script.bodies) == 2
    script.answers = [BUSY]
    with pytest.raises(ServiceUnavailableError):
        segment("the kite", {"retry_budget": budget})
    assert len(script.bodies) == 3
    for _ in range(2):
        segment("the kite", {"retry_budget": budget})
    script.answers = [BUSY]
    assert segment("the kite", {"retry_budget": budget}).status == "ok"


def test_no_server_is_one_line(segment: Segment) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ServerUnreachableError, match=f"no server answers at {url}") as caught:
            segment("the kite", {"base_url": url, "max_retries": 0})
    assert caught.value.request_id
    assert "\n" not in str(caught.value)


def test_an_unknown_option_is_refused_before_sending(segment: Segment, script: Script) -> None:
    with pytest.raises(InvalidInputError, match="max_pionts"):
        segment("the kite", max_pionts=64)
    assert script.bodies == []


def test_the_environment_names_server_and_key(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMPLESEG_BASE_URL", script.url)
    monkeypatch.setenv("SIMPLESEG_API_KEY", "secret")
    with SimpleSeg() as client:
        client.segment(PICTURE, "the kite")
    assert script.headers[0]["authorization"] == "Bearer secret"


def test_a_foreign_http_client_stays_open(script: Script) -> None:
    with httpx2.Client() as http:
        for _ in range(2):
            with SimpleSeg(script.url, http_client=http) as client:
                client.segment(PICTURE, "the kite")
        assert not http.is_closed


def test_the_whole_answer_for_any_task(script: Script) -> None:
    with SimpleSeg(script.url) as client:
        answer = client.respond(PICTURE, "the kite", task="box")
    assert script.bodies[0]["task"] == "box"
    assert answer.usage.total_tokens == 1
