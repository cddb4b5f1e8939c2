"""Images by URL on every route that takes an image, from a server next door."""

import asyncio
import http.client
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient

from simpleseg_server.app import create_app
from simpleseg_server.config import Settings
from simpleseg_server.logs import set_up
from simpleseg_server.tracing import Tracer

from .asking import answer, refusal
from .chatting import PATH, QUESTION
from .conftest import PhraseEngine
from .image_hosts import Answer, Host, redirecting, response, saying, serving, stalling, world
from .test_logs import lines_of, stream  # noqa: F401
from .test_metrics import value

ON: dict[str, Any] = {
    "image_urls": "public",
    "image_url_timeout_s": 60,
    "image_url_connect_timeout_s": 30,
}
CANARY = "/canary-path.png?canary-query"


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class Neighbour:
    """Hosts in a thread of their own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._open: list[Any] = []
        self._thread.start()

    def host(self, answering: Answer) -> Host:
        manager = serving(answering)
        self._open.append(manager)
        host: Host = self._run(manager.__aenter__())
        return host

    def close(self) -> None:
        for manager in self._open:
            self._run(manager.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)


@pytest.fixture
def neighbour() -> Iterator[Neighbour]:
    hosts = Neighbour()
    yield hosts
    hosts.close()


@pytest.fixture
def store(neighbour: Neighbour, png: bytes) -> Host:
    """A host whose every file is the picture."""
    return neighbour.host(saying(response(png)))


@pytest.fixture
def client(make_client: Any, engine: PhraseEngine, store: Host) -> Iterator[Any]:
    with make_client(engine, world(store), **ON) as client:
        yield client


def chat(url: str) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    return {"messages": [{"role": "user", "content": parts}]}


def without_times(response: Any) -> Any:
    varying = ("id", "created", "timings_ms")
    return {name: value for name, value in response.items() if name not in varying}


def test_a_url_is_as_good_as_the_file(client: Any, store: Host, image64: str) -> None:
    expected = without_times(answer(client, image=image64, prompt="dog"))
    for image in (store.url(), {"url": store.url()}, store.url().replace("http", "HTTP")):
        found = answer(client, image=image, prompt="dog")
        assert without_times(found) == expected
        assert found["timings_ms"]["fetch"] > 0
    assert len(store.heads) == 3


def test_a_url_in_a_form(client: Any, store: Host, image64: str, png: bytes) -> None:
    expected = without_times(answer(client, image=image64, prompt="dog"))
    parts: Any = [("image", (None, store.url())), ("prompt", (None, "dog"))]
    found = client.post("/segment", files=parts)
    assert without_times(found.json()) == expected
    twice = client.post("/segment", files=[*parts, ("image", ("x.png", png))])
    assert refusal(twice) == (400, "image_source_ambiguous", "image")
    again = client.post("/segment", files=[*parts, parts[0]])
    assert refusal(again) == (400, "image_source_ambiguous", "image")


def test_a_url_in_a_chat(client: Any, store: Host) -> None:
    answered = client.post(PATH, json=chat(store.url()))
    assert answered.json()["choices"][0]["message"]["segmentation"]["status"] == "ok"
    assert "fetch;dur=" in answered.headers["server-timing"]


def test_a_url_to_keep(client: Any, store: Host, png: bytes) -> None:
    kept = client.post("/v1/images", json={"image": {"url": store.url()}}).json()
    assert kept["bytes"] == len(png)
    for _ in range(2):
        answer(client, image={"id": kept["id"]}, prompt="dog")
    assert len(store.heads) == 1
    form = client.post("/v1/images", files={"image": (None, store.url())})
    assert form.json()["width"] == kept["width"]


def test_a_second_look_fetches_once(client: Any, store: Host) -> None:
    assert answer(client, image=store.url(), prompt="dog", refine=True)["usage"]["total_tokens"]
    assert len(store.heads) == 1


def test_a_batch_waits_for_its_own_turn(
    make_client: Any, engine: PhraseEngine, store: Host
) -> None:
    settings = {**ON, "max_fetches": 2, "max_fetches_per_host": 1}
    with make_client(engine, world(store), **settings) as client:
        items = [{"image": {"url": store.url(f"/{n}")}, "prompt": "x"} for n in range(20)]
        found = client.post("/v1/segment/batch", json={"requests": items}).json()["results"]
    assert [item["status"] for item in found] == [200] * 20
    assert len({head.split()[1] for head in store.heads}) == 20


def test_engines_see_pixels_and_no_url(client: Any, engine: PhraseEngine, store: Host) -> None:
    answer(client, image=store.url(CANARY), prompt="dog")
    client.post(PATH, json=chat(store.url(CANARY)))
    assert len(engine.requests) == 2
    for request in engine.requests:
        assert request.image_hw3.shape == (45, 90, 3)
        assert "canary" not in repr(request)
        assert "127.0.0.1" not in repr(request)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/segment", {"image": "URL", "prompt": "x"}, "image"),
        ("/segment", {"image": {"url": "URL"}, "prompt": "x"}, "image.url"),
        ("/v1/images", {"image": {"url": "URL"}}, "image.url"),
        (PATH, chat("URL"), "messages[0].content[0].image_url.url"),
    ],
)
def test_refusals_name_the_field(client: Any, path: str, body: Any, param: str) -> None:
    for url, code in (
        ("http://private.test:1/", "image_url_blocked"),
        ("file:///etc/passwd", "image_url_invalid"),
        ("gopher://x/", "image_url_invalid"),
    ):
        sent = json.loads(json.dumps(body).replace("URL", url))
        assert refusal(client.post(path, json=sent)) == (422, code, param)


def test_a_data_url_is_read_as_before(client: Any, store: Host, image64: str) -> None:
    answer(client, image={"url": f"data:image/png;base64,{image64}"}, prompt="x")
    bad = client.post("/segment", json={"image": "data:image/png,x", "prompt": "x"})
    assert refusal(bad) == (400, "image_url_invalid", "image")
    assert store.heads == []


@pytest.mark.parametrize("settings", [{}, {"image_urls": "off"}])
def test_nothing_is_fetched_unless_it_is_turned_on(
    make_client: Any, engine: PhraseEngine, store: Host, settings: Any
) -> None:
    with make_client(engine, world(store), **settings) as client:
        for path, body in (
            ("/segment", {"image": {"url": store.url()}, "prompt": "x"}),
            ("/v1/images", {"image": store.url()}),
            (PATH, chat(store.url())),
        ):
            assert refusal(client.post(path, json=body))[:2] == (422, "image_url_blocked")
    assert store.heads == []


def test_limits_are_checked_before_anything_is_fetched(client: Any, store: Host) -> None:
    body = {"image": store.url(), "prompt": "x", "max_tokens": 10**6}
    assert refusal(client.post("/segment", json=body))[1] == "value_out_of_range"
    assert store.heads == []


def test_what_was_fetched_is_decoded_like_an_upload(
    neighbour: Neighbour, make_client: Any, engine: PhraseEngine, png: bytes
) -> None:
    host = neighbour.host(saying(response(png[:60])))
    with make_client(engine, world(host), **ON) as client:
        cut = client.post("/segment", json={"image": {"url": host.url()}, "prompt": "x"})
    assert refusal(cut) == (422, "image_truncated", "image.url")


def test_outcomes_and_times_are_metrics(
    neighbour: Neighbour, make_client: Any, engine: PhraseEngine, png: bytes, store: Host
) -> None:
    lost, long = neighbour.host(saying(b"")), neighbour.host(saying(response(png + bytes(10**5))))
    settings = {**ON, "max_image_bytes": 10**5}
    with make_client(engine, world(store, lost, long), **settings) as client:
        for url in (store.url(), lost.url(), long.url(), "x://y", "http://[::1]/"):
            client.post("/segment", json={"image": {"url": url}, "prompt": "x"})
        text = client.get("/metrics").text
    for outcome in ("ok", "failed", "too_large", "invalid", "blocked"):
        assert value(text, "simpleseg_image_fetch_total", outcome=outcome) == 1, outcome
    assert value(text, "simpleseg_image_fetch_total") == 5
    assert value(text, "simpleseg_stage_duration_seconds_count", stage="fetch") == 5


def test_a_fetch_is_a_span(engine: PhraseEngine, store: Host) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = create_app(Settings(**ON), engine, tracer=Tracer(provider), network=world(store))
    with TestClient(app) as client:
        body = {"image": {"url": store.url(CANARY)}, "prompt": "x"}
        caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        client.post("/segment", json=body, headers={"traceparent": caller})
    spans = {span.name: span for span in exporter.get_finished_spans()}
    parent, root = spans["fetch"].parent, spans["POST /segment"].context
    assert parent is not None
    assert root is not None
    assert parent.span_id == root.span_id
    assert "canary" not in "".join(span.to_json() for span in spans.values())
    assert "traceparent" not in store.heads[0].lower()


def test_urls_and_what_hosts_say_are_not_logged(
    stream: io.StringIO,  # noqa: F811
    neighbour: Neighbour,
    make_client: Any,
    engine: PhraseEngine,
    store: Host,
) -> None:
    away = neighbour.host(redirecting(store.url(CANARY)))
    rude = neighbour.host(saying(b"HTTP/1.1 canary\r\n\r\n"))
    set_up("json", "debug", stream)
    with make_client(engine, world(store, away, rude), **ON) as client:
        for host in (store, away, rude):
            asked = {"image": {"url": host.url(CANARY)}, "prompt": "x"}
            told = client.post("/segment", json=asked)
            assert "canary" not in told.text + str(told.headers)
    assert len([line for line in lines_of(stream) if line.get("event") == "request"]) == 3
    assert "canary" not in stream.getvalue()


def test_the_deadline_of_a_request_ends_its_fetch(
    neighbour: Neighbour, make_client: Any, engine: PhraseEngine
) -> None:
    host = neighbour.host(stalling())
    with make_client(engine, world(host), **ON) as client:
        body = {"image": {"url": host.url()}, "prompt": "x", "deadline_ms": 100}
        assert refusal(client.post("/segment", json=body)) == (
            422,
            "image_fetch_timeout",
            "image.url",
        )


def asking(url: str, body: Any) -> http.client.HTTPConnection:
    """A connection on which this was asked."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    content = {"Content-Type": "application/json"}
    connection.request("POST", "/segment", json.dumps(body), content)
    return connection


@pytest.fixture
def slow(
    neighbour: Neighbour, serve_on_socket: Any, engine: PhraseEngine
) -> Iterator[tuple[str, Host]]:
    """A real server, and a host that never answers it."""
    host = neighbour.host(stalling())
    with serve_on_socket(engine, world(host), **ON) as url:
        wait_until(lambda: httpx2.get(f"{url}/readyz").status_code == 200)
        yield url, host


@pytest.mark.catalogue("D15")
def test_a_slow_host_does_not_keep_uploads_out(slow: tuple[str, Host], image64: str) -> None:
    """Of many requests on a host that never answers, most are refused at once."""
    url, host = slow
    with ExitStack() as open_connections:
        for _ in range(50):
            connection = asking(url, {"image": {"url": host.url()}, "prompt": "x"})
            open_connections.callback(connection.close)
        wait_until(lambda: len(host.heads) == 8)
        upload = asking(url, {"image": image64, "prompt": "x"})
        open_connections.callback(upload.close)
        assert upload.getresponse().status == 200
        assert len(host.heads) == 8


def test_a_client_that_hangs_up_ends_its_fetch(slow: tuple[str, Host]) -> None:
    url, host = slow
    leaving = asking(url, {"image": {"url": host.url()}, "prompt": "x"})
    wait_until(lambda: len(host.heads) == 1)
    assert not host.ended.is_set()
    leaving.close()
    wait_until(host.ended.is_set)
    counted = 'simpleseg_image_fetch_total{outcome="cancelled"} 1.0'
    wait_until(lambda: counted in httpx2.get(f"{url}/metrics").text)
