"""Log lines: one JSON object for a request, with fixed fields, that nobody can forge."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpleseg_server.engines.scripted import Reply
from simpleseg_server.errors import overloaded
from simpleseg_server.logs import (
    LINE_FIELDS,
    MAX_CHARACTERS,
    JsonFormatter,
    TextFormatter,
    log_request,
    printable,
    set_up,
)
from simpleseg_server.middleware import UnreadRequests
from simpleseg_server.telemetry import Metrics

HEAD = ["time", "level", "logger"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    names = ("simpleseg_server", "simpleseg", "uvicorn")
    before = root.handlers[:], root.level, [logging.getLogger(name).level for name in names]
    yield io.StringIO()
    root.handlers[:], level, levels = before
    root.setLevel(level)
    for name, given_level in zip(names, levels, strict=True):
        logging.getLogger(name).setLevel(given_level)
    logging.getLogger("uvicorn.access").disabled = False


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_request_is_one_json_line_with_fixed_fields(
    stream: io.StringIO, make_client: Any, engine: Any, image64: str
) -> None:
    set_up("auto", "info", stream)
    with make_client(engine, api_keys=("canary-key",)) as client:
        body = {"image": image64, "prompt": "canary-phrase"}
        headers = {"X-API-Key": "canary-key", "X-Request-Id": "mine", "User-Agent": "canary-agent"}
        assert client.post("/segment?q=canary", json=body, headers=headers).status_code == 200
        client.post("/segment", json=body)
        client.get("/canary%0d%0apath", headers={"X-API-Key": "canary-key"})
    requests = [line for line in lines_of(stream) if line.get("event") == "request"]
    assert len(requests) == 3
    for line in requests:
        assert list(line) == [*HEAD, *LINE_FIELDS]
    good, refused, lost = requests
    assert (good["request_id"], good["route"], good["method"]) == ("mine", "/segment", "POST")
    assert (good["status"], good["outcome"], good["key_name"]) == (200, "ok", "key-1")
    assert good["duration_ms"] >= good["stages_ms"]["generate"] > 0
    assert (refused["status"], refused["outcome"], refused["key_name"]) == (401, "rejected", None)
    assert (lost["status"], lost["route"]) == (404, "other")
    text = stream.getvalue()
    assert "canary" not in text
    assert image64[:30] not in text


def test_text_on_a_terminal_and_json_elsewhere(stream: io.StringIO) -> None:
    terminal = Terminal()
    for target in (terminal, stream):
        set_up("auto", "info", target)
        log_request(logging.getLogger("simpleseg_server"), {"status": 200})
    assert terminal.getvalue().endswith(" INFO event=request status=200\n")
    assert json.loads(stream.getvalue())["status"] == 200


def test_the_level_is_the_one_asked_for_and_others_only_warn(stream: io.StringIO) -> None:
    set_up("json", "warning", stream)
    logging.getLogger("simpleseg_server").info("no")
    set_up("json", "info", stream)
    logging.getLogger("httpx2").info("GET https://user:secret@host/")
    logging.getLogger("uvicorn.access").info("no")
    logging.getLogger("uvicorn.error").info("yes")
    logging.getLogger("simpleseg_server").info("yes")
    assert [line["message"] for line in lines_of(stream)] == ["yes", "yes"]


HOSTILE = st.text(st.characters() | st.sampled_from("\r\n\x1b\x00\x7f\x85\u2028\u2029\u202e{}%\"'"))


@given(HOSTILE)
def test_whatever_is_logged_stays_on_its_line(text: str) -> None:
    record = logging.LogRecord("simpleseg_server", logging.INFO, "", 0, "%s", (text,), None)
    record.fields = {"event": "request", "route": text, "stages_ms": {text: 1.0}}
    for formatter in (JsonFormatter(), TextFormatter()):
        line = formatter.format(record)
        assert line.isascii()
        assert line.isprintable()
        assert len(line) <= 8192 or isinstance(formatter, TextFormatter)
    assert json.loads(JsonFormatter().format(record))["event"] == "request"


@given(HOSTILE)
def test_printable_can_be_read_back(text: str) -> None:
    shown = printable(text.replace("\\", ""))
    assert shown.encode("ascii").decode("unicode_escape") == text.replace("\\", "")


def test_long_values_are_cut() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "a" * 10**6, (), None)
    for formatter in (JsonFormatter(), TextFormatter()):
        assert len(formatter.format(record)) < MAX_CHARACTERS + 200


def _failing(secret: str) -> None:
    try:
        raise KeyError(secret)
    except KeyError as error:
        raise ValueError(f"bad value {secret}") from error


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_an_exception_is_told_without_its_text(log_format: Any, stream: io.StringIO) -> None:
    set_up(log_format, "info", stream)
    logger = logging.getLogger("simpleseg_server")
    for with_text in (False, True):
        try:
            _failing("canary\nforged line")
        except ValueError:
            logger.exception("it failed", extra={"with_text": with_text})
        text = stream.getvalue()
        assert ("canary" in text) == with_text
        assert "ValueError" in text
        assert "KeyError" in text
        assert "test_logs.py" in text
        assert not any(line.startswith("forged") for line in text.splitlines())


@pytest.mark.server_fault
def test_a_bug_and_an_engine_fault_say_where_and_not_what(
    stream: io.StringIO, make_client: Any, engine: Any, image64: str
) -> None:
    set_up("json", "info", stream)
    engine.replies = {"fault": Reply("[]", fault="error")}
    with make_client(engine) as client:
        body = {"image": image64, "prompt": "fault canary-phrase"}
        assert client.post("/segment", json=body).status_code == 503
        engine._script = lambda request: {}[request.instruction]
        assert client.post("/segment", json=body).status_code == 500
    lines = lines_of(stream)
    (fault,) = [line for line in lines if line.get("error") == "EngineError"]
    (bug,) = [line for line in lines if line.get("event") == "bug"]
    assert any("scripted.py" in frame for frame in fault["frames"])
    assert any("test_logs.py" in frame for frame in bug["frames"])
    assert bug["request_id"].startswith("req_")
    assert "canary" not in stream.getvalue()


def test_a_flood_of_refusals_is_few_lines(stream: io.StringIO) -> None:
    set_up("json", "info", stream)
    metrics = Metrics()

    async def flood() -> None:
        unread = UnreadRequests(metrics)
        for number in range(500):
            unread.record(overloaded(1.0), f"req_{number}", "alice")
        while "refused" not in stream.getvalue():
            await asyncio.sleep(0.05)
        unread.record(overloaded(1.0), "req_later")

    asyncio.run(flood())
    *first, summary, later = lines_of(stream)
    assert [line["request_id"] for line in first] == [f"req_{n}" for n in range(len(first))]
    assert list(first[0]) == [*HEAD, *LINE_FIELDS]
    assert {line["key_name"] for line in first} == {"alice"}
    assert summary["code"] == "overloaded"
    assert len(first) + summary["count"] == 500
    assert 0 < len(first) < 50
    assert later["request_id"] == "req_later"
    assert 'simpleseg_rejections_total{reason="overloaded"} 501.0' in str(metrics.exposition()[0])
