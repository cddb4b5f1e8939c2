"""Section I: keys, logs and metrics."""

import io
import json
import logging
import os
import random
import re
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import SecretStr
from starlette.testclient import TestClient

from simpleseg_server.app import create_app
from simpleseg_server.config import Settings
from simpleseg_server.engines.scripted import ScriptedEngine
from simpleseg_server.keys import KeyRing
from simpleseg_server.logs import MAX_LINE_BYTES, JsonFormatter, LineHandler, TextFormatter
from simpleseg_server.telemetry import Metrics
from simpleseg_server.tracing import Tracer

from ..server.processes import wait_for
from .canary import GOLDEN, IMAGE64, KEY, Canary, posted
from .canary_server import reply
from .conftest import MakeCanary

OTHER = "canary-other-9a8b7c"


def replace(path: Path, text: str) -> None:
    """As an operator's tools write a file that is in use."""
    path.with_suffix(".new").write_text(text)
    os.replace(path.with_suffix(".new"), path)


def test_I3_keys_change_and_no_request_fails(make_canary: MakeCanary, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text('[alice]\nkey = "first"\n')
    with make_canary(api_keys_file=str(keys)) as canary:
        counts: dict[str, list[int]] = {"first": [], "second": []}

        def ask(key: str) -> int:
            status = posted(canary.url, "/segment", GOLDEN, {"X-API-Key": key})[0]
            counts[key].append(status)
            return status

        assert (ask("first"), ask("second")) == (200, 401)
        replace(keys, '[alice]\nkey = "first"\n[bob]\nkey = "second"\n')
        wait_for(lambda: ask("first") == 200 and ask("second") == 200)
        assert set(counts["first"]) == {200}
        replace(keys, '[bob]\nkey = "second"\n')
        wait_for(lambda: ask("second") == 200 and ask("first") == 401)
        second = counts["second"]
        assert set(second[second.index(200) :]) == {200}


def test_I3_the_time_tells_nothing() -> None:
    """A key that is almost right takes as long as one that is all wrong: interleaved, the medians
    are the same within a tenth, with keys enough for a search that ends early to show."""
    keys = [f"{n:040d}" for n in range(50)]
    ring = KeyRing(Settings(api_keys=tuple(map(SecretStr, keys))))
    asked = {
        "first": keys[0],
        "last": keys[-1],
        "almost": keys[0][:-1] + "x",
        "wrong": "x" * 40,
    }
    times: dict[str, list[int]] = {name: [] for name in asked}
    for _ in range(5000):
        for name, key in asked.items():
            began = time.perf_counter_ns()
            ring.find(key)
            times[name].append(time.perf_counter_ns() - began)
    medians = [statistics.median(found) for found in times.values()]
    assert max(medians) < 1.1 * min(medians)


def test_I5_keys_in_every_place(canary: Canary) -> None:
    """Whatever a client puts its keys into, the server tells none of it."""
    canary.secrets.append(OTHER)
    for key in (KEY, OTHER):
        headers = {"Cookie": f"key={key}", "User-Agent": key, "Referer": f"http://x/?k={key}"}
        for path in (f"/livez?api_key={key}", f"/{key}", f"/v1/models/{key}", f"/v1/images/{key}"):
            canary.client.get(path, headers=headers)
        for field in ("model", "task", "prompt"):  # an unknown field is named: it is no place
            canary.segment(**{field: [key]})
        canary.segment(image={"url": f"http://{key}@example.org/"})
        canary.segment(image={"url": f"data:{key};base64,aGk="})
        canary.client.post("/segment", content=key, headers={"Content-Type": key})
        canary.client.post("/segment", files={key: (key, key)}, data={"prompt": "x"})
        canary.client.get("/v1/models", headers={"X-API-Key": f"{key} {key}"})
        canary.raw(f"GET /{key} HTTP/9.9\r\n{key}\r\n\r\n".encode())


def test_I5_keys_in_traces() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    settings = Settings(api_keys=(SecretStr(KEY),))
    app = create_app(settings, ScriptedEngine(reply), tracer=Tracer(provider))
    headers = {"X-API-Key": KEY, "Cookie": KEY, "User-Agent": KEY}
    with TestClient(app, headers=headers) as client:
        assert client.post(f"/segment?key={KEY}", json=GOLDEN).status_code == 200
        client.post("/segment", json={**GOLDEN, "model": KEY})
        client.get(f"/{KEY}")
    spans = [span.to_json() for span in exporter.get_finished_spans()]
    assert len(spans) >= 3
    assert KEY not in "".join(spans)


FORGERY = 'x\r\n{"event": "request"}\n\x1b[2J\u2028\u2029\x85\u202e\x00"\\'


def test_I6_hostile_fields_are_one_short_line() -> None:
    for text in (FORGERY, FORGERY * 1000, "\U0001f600" * 10**5, "\u2028" * 10**6):
        record = logging.LogRecord("simpleseg_server", logging.INFO, "", 0, "%s", (text,), None)
        for fields in (None, {f"field{n}": text for n in range(10)}, {text: [{text: text}] * 30}):
            record.__dict__["fields"] = fields
            for formatter in (JsonFormatter(), TextFormatter()):
                line = formatter.format(record)
                assert line.isascii()
                assert line.isprintable()
                assert len(line) < MAX_LINE_BYTES < 8192
                if text not in (fields or {}) and isinstance(formatter, JsonFormatter):
                    assert json.loads(line), "strings are shortened, not the line"


def test_I6_hostile_requests_are_one_line_each(canary: Canary) -> None:
    """What a client can put into a request is in no line; the canary counts them."""
    canary.secrets += ["forged", "\x1b", "\u2028"]
    wild = FORGERY.replace("request", "forged")
    for name in ("x-request-id", "user-agent", "traceparent", "x-forwarded-for"):
        head = f"GET /livez HTTP/1.1\r\nHost: x\r\n{name}: {wild}\r\n\r\n"
        canary.raw(head.encode())
    canary.client.get("/forged%0d%0a%7b%22event%22:%22forged%22%7d")
    canary.client.request("FORGED", "/segment")
    canary.segment(prompt=wild, model=wild)
    canary.client.post("/segment", content=b"forged", headers={"Content-Type": "forged/forged"})
    for line in canary.log.read_text().splitlines():
        assert len(line) < MAX_LINE_BYTES
        assert json.loads(line)


def series(text: str) -> set[str]:
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return {line.rpartition(" ")[0] for line in lines}


def hostile_request(canary: Canary, draw: random.Random) -> None:
    """A request none of whose names was there before."""
    name = "".join(draw.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=12))
    kind = draw.randrange(7)
    if kind == 0:
        canary.client.get(f"/{name}/{name}?{name}={name}")
    elif kind == 1:
        canary.client.request(name.upper(), "/segment")
    elif kind == 2:
        canary.segment(model=name)
    elif kind == 3:
        canary.segment(**{name: name})
    elif kind == 4:
        canary.client.get("/v1/models", headers={"X-API-Key": name})
    elif kind == 5:
        canary.client.post("/segment", content=name, headers={"Content-Type": f"{name}/{name}"})
    else:
        canary.client.get(f"/v1/images/{name}", headers={"X-Request-Id": name, "Host": name})


def storm(canary: Canary, count: int) -> None:
    """Hostile requests add no series to those that the first few have."""
    draw = random.Random(8)
    for _ in range(100):
        hostile_request(canary, draw)
    canary.metrics()
    before = series(canary.metrics())
    for _ in range(count):
        hostile_request(canary, draw)
        canary.said.clear()
    assert series(canary.metrics()) == before
    assert len(before) <= 500


def test_I7_hostile_labels(make_canary: MakeCanary) -> None:
    with make_canary() as canary:
        storm(canary, 500)


@pytest.mark.slow
def test_I7_hostile_labels_100_000_times(make_canary: MakeCanary) -> None:
    with make_canary() as canary:
        storm(canary, 100_000)


def test_I8_metrics_are_scraped_in_an_overload(make_canary: MakeCanary) -> None:
    """The listener for operations answers every scrape while the other one refuses."""
    with make_canary(max_running_prompts="1", max_queued_requests="1") as canary:
        refused, is_over = [], threading.Event()

        def flood() -> None:
            while not is_over.is_set():
                body = {"image": IMAGE64, "prompt": "canary-slow"}
                headers = {"X-API-Key": KEY}
                refused.append(posted(canary.url, "/segment", body, headers)[0])

        threads = [threading.Thread(target=flood) for _ in range(6)]
        for thread in threads:
            thread.start()
        wait_for(lambda: refused.count(503) > 10)
        for _ in range(100):
            assert "simpleseg_in_flight" in canary.metrics()
        is_over.set()
        for thread in threads:
            thread.join()
        assert set(refused) <= {200, 503}


class Broken(io.StringIO):
    def write(self, _: str) -> int:
        raise OSError("no space left")


def _break_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("simpleseg_server"), "handlers", [LineHandler(Broken())])


def _break_format(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = LineHandler(io.StringIO())
    handler.setFormatter(logging.Formatter("%(nothing)s"))
    monkeypatch.setattr(logging.getLogger("simpleseg_server"), "handlers", [handler])


def _fail(*_: Any, **__: Any) -> None:
    raise ValueError("broken")


def _break_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Metrics, "observe_request", _fail)


@pytest.mark.parametrize("damage", [_break_log, _break_format, _break_metrics])
def test_I9_broken_observers(
    damage: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "simpleseg_server")
    with TestClient(create_app(Settings(), ScriptedEngine(reply))) as client:
        expected = client.post("/segment", json=GOLDEN).json()["results"]
        before = LineHandler.dropped
        damage(monkeypatch)
        for _ in range(3):
            answer = client.post("/segment", json=GOLDEN)
            assert (answer.status_code, answer.json()["results"]) == (200, expected)
        assert (LineHandler.dropped > before) == (damage is not _break_metrics)
        assert re.search(r"^simpleseg_log_lines_dropped \d", client.get("/metrics").text, re.M)
