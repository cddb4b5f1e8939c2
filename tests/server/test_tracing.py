"""Traces: a caller's context is taken and passed on, and every stage has a span."""

import logging
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.testclient import TestClient

from simpleseg_server.app import create_app
from simpleseg_server.config import ConfigError, Settings
from simpleseg_server.engines.scripted import Reply
from simpleseg_server.tracing import Tracer, accepted, outgoing_headers, trace_id_in

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
CALLER = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
STAGES = {
    "read_body",
    "decode_image",
    "generate",
    "queue",
    "preprocess",
    "prefill",
    "decode",
    "parse",
    "rasterize",
    "encode",
}


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traced(engine: Any, exporter: InMemorySpanExporter) -> Iterator[TestClient]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with TestClient(create_app(Settings(), engine, tracer=Tracer(provider))) as client:
        yield client


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    spans = exporter.get_finished_spans()
    found = {span.name: span for span in spans}
    assert len(found) == len(spans)
    return found


def test_a_request_is_a_span_with_a_span_for_each_stage(
    traced: Any, exporter: InMemorySpanExporter, image64: str
) -> None:
    body = {"image": image64, "prompt": "canary-phrase"}
    headers = CALLER | {"X-Request-Id": "mine"}
    assert traced.post("/segment", json=body, headers=headers).status_code == 200
    spans = by_name(exporter)
    root = spans.pop("POST /segment")
    assert spans.keys() == STAGES
    assert root.kind is SpanKind.SERVER
    assert root.context is not None
    assert (f"{root.context.trace_id:032x}", root.context.is_remote) == (TRACE, False)
    assert root.parent is not None
    assert f"{root.parent.span_id:016x}" == PARENT
    assert root.attributes is not None
    assert dict(root.attributes) == {
        "http.request.method": "POST",
        "http.route": "/segment",
        "http.response.status_code": 200,
        "simpleseg.request_id": "mine",
    }
    assert [event.name for event in root.events] == ["first_token", "first_point"]
    for span in spans.values():
        assert span.parent is not None
        assert span.parent.span_id == root.context.span_id
        assert _bounds(root)[0] - 10**7 <= _bounds(span)[0] <= _bounds(span)[1]
        assert _bounds(span)[1] <= _bounds(root)[1] + 10**7
    assert "canary" not in "".join(span.to_json() for span in exporter.get_finished_spans())


def _bounds(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


def test_the_stages_of_an_answer_follow_each_other_inside_generate(
    traced: Any, exporter: InMemorySpanExporter, engine: Any, image64: str
) -> None:
    engine.default = Reply("[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]].", delay_s=0.005)
    traced.post("/segment", json={"image": image64, "prompt": "x"})
    spans = by_name(exporter)
    began, ended = _bounds(spans["generate"])
    at = began
    for stage in ("queue", "preprocess", "prefill", "decode"):
        assert abs(_bounds(spans[stage])[0] - at) < 10**6
        at = _bounds(spans[stage])[1]
    assert abs(at - ended) < 10**6
    assert _bounds(spans["decode_image"])[1] <= began
    assert _bounds(spans["parse"])[0] >= ended - 10**6
    assert ended - began > 20 * 10**6  # several delays of 5 ms


def below(exporter: InMemorySpanExporter, span: ReadableSpan) -> list[ReadableSpan]:
    assert span.context is not None
    children = [s for s in exporter.get_finished_spans() if s.parent is not None]
    return [s for s in children if s.parent and s.parent.span_id == span.context.span_id]


def index_of(span: ReadableSpan) -> Any:
    assert span.attributes is not None
    return span.attributes["simpleseg.index"]


def root_of(exporter: InMemorySpanExporter) -> ReadableSpan:
    (root,) = (span for span in exporter.get_finished_spans() if span.parent is None)
    return root


OF_A_PROMPT = {"generate", "queue", "preprocess", "prefill", "decode", "parse", "rasterize"}


def test_several_prompts_have_a_span_each(
    traced: Any, exporter: InMemorySpanExporter, engine: Any, image64: str
) -> None:
    engine.replies = {"slow": Reply("[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]].", delay_s=0.01)}
    traced.post("/segment", json={"image": image64, "prompts": ["quick", "slow"]})
    root = root_of(exporter)
    prompts = [span for span in below(exporter, root) if span.name == "prompt"]
    assert [index_of(span) for span in prompts] == [0, 1]
    others = [span.name for span in below(exporter, root) if span.name != "prompt"]
    assert sorted(others) == ["decode_image", "encode", "read_body"]
    took = []
    for span in prompts:
        stages = {stage.name: stage for stage in below(exporter, span)}
        assert stages.keys() == OF_A_PROMPT
        assert [event.name for event in span.events] == ["first_token", "first_point"]
        assert _bounds(span)[1] >= max(_bounds(stage)[1] for stage in stages.values())
        took.append(_bounds(stages["generate"])[1] - _bounds(stages["generate"])[0])
    assert took[0] < took[1]
    assert {event.name for event in root.events} == {"first_token", "first_point"}


def test_each_request_of_a_batch_is_a_span_with_its_stages(
    traced: Any, exporter: InMemorySpanExporter, image64: str
) -> None:
    requests = [
        {"image": image64, "prompt": "x"},
        {"image": image64, "prompts": ["x", "y"]},
        {"image": "???", "prompt": "x"},
    ]
    traced.post("/v1/segment/batch", json={"requests": requests}, headers=CALLER)
    (root,) = (s for s in exporter.get_finished_spans() if s.name == "POST /v1/segment/batch")
    items = sorted((s for s in below(exporter, root) if s.name == "item"), key=index_of)
    assert [index_of(span) for span in items] == [0, 1, 2]
    assert {s.name for s in below(exporter, root)} == {"read_body", "item", "encode"}
    single, several, wrong = ({s.name for s in below(exporter, item)} for item in items)
    assert single == {"read_body", "decode_image"} | OF_A_PROMPT
    assert several == {"read_body", "decode_image", "prompt"}
    assert wrong == {"read_body"}


def test_a_request_without_a_caller_begins_a_trace(traced: Any, exporter: Any) -> None:
    traced.get("/v1/models", headers={"traceparent": f"00-{TRACE}-{'0' * 16}-01"})
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.parent) == ("GET /v1/models", None)
    assert f"{span.context.trace_id:032x}" != TRACE


def test_what_a_caller_did_not_sample_is_not_recorded(traced: Any, exporter: Any) -> None:
    traced.get("/v1/models", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert exporter.get_finished_spans() == ()


def test_probes_are_not_traced_and_refusals_are(traced: Any, exporter: Any, engine: Any) -> None:
    for path in ("/livez", "/readyz", "/metrics", "/v1/health/live"):
        traced.get(path)
    assert exporter.get_finished_spans() == ()
    traced.post("/segment", content=b"x")
    traced.get("/canary")
    refused, lost = exporter.get_finished_spans()[-2:]
    assert (refused.attributes["http.response.status_code"], refused.name) == (415, "POST /segment")
    assert (lost.attributes["http.response.status_code"], lost.name) == (404, "GET")
    assert refused.status.status_code is StatusCode.UNSET


@pytest.mark.server_fault
def test_a_bug_is_an_error(traced: Any, exporter: Any, engine: Any, image64: str) -> None:
    def burst(request: Any) -> Any:
        raise KeyError("canary")

    engine._script = burst
    response = traced.post("/segment", json={"image": image64, "prompt": "x"})
    assert response.status_code == 500
    root = by_name(exporter)["POST /segment"]
    assert root.status.status_code is StatusCode.ERROR
    assert "canary" not in root.to_json()


class Noting:
    """Notes what the engine would pass on to another server."""

    def __init__(self, engine: Any) -> None:
        self.passed: list[dict[str, str]] = []
        script = engine._script

        def noted(request: Any) -> Any:
            self.passed.append(outgoing_headers())
            return script(request)

        engine._script = noted


def test_the_context_is_passed_on_below_the_request(
    traced: Any, exporter: Any, engine: Any, image64: str
) -> None:
    noting = Noting(engine)
    traced.post("/segment", json={"image": image64, "prompts": ["a", "b"]}, headers=CALLER)
    root = next(s for s in exporter.get_finished_spans() if s.name == "POST /segment")
    expected = f"00-{TRACE}-{root.context.span_id:016x}-01"
    assert noting.passed == [{"traceparent": expected, "tracestate": "vendor=1"}] * 2
    assert outgoing_headers() == {}


def test_without_a_tracer_a_callers_context_is_passed_on_as_it_is(
    client: Any, engine: Any, image64: str, caplog: pytest.LogCaptureFixture
) -> None:
    noting = Noting(engine)
    sent: list[dict[str, str]] = [CALLER, {}, {"traceparent": "canary", "tracestate": "vendor=1"}]
    with caplog.at_level(logging.INFO, "simpleseg_server"):
        for headers in sent:
            client.post("/segment", json={"image": image64, "prompt": "x"}, headers=headers)
    assert noting.passed == [CALLER, {}, {}]
    ids = [record.fields["trace_id"] for record in caplog.records if hasattr(record, "fields")]
    assert ids == [TRACE, None, None]


@given(st.text() | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\n?"))
def test_only_sound_contexts_are_accepted(parent: str) -> None:
    context = accepted({"traceparent": parent, "tracestate": "a\nb"})
    assert context in ({}, {"traceparent": parent})
    assert (trace_id_in(context) is None) == (context == {})
    if context:
        assert re.fullmatch(r"[0-9a-f-]{55}", parent)


class Collector(HTTPServer):
    """Stands in for an OTLP/HTTP collector: keeps the spans that were posted."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.names: list[str] = []
        self.resources: list[dict[str, str]] = []
        self.paths: set[str] = set()


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            raise AssertionError("unexpected compression")
        message = ExportTraceServiceRequest.FromString(data)
        for resource in message.resource_spans:
            attributes = {a.key: a.value.string_value for a in resource.resource.attributes}
            self.server.resources.append(attributes)
            self.server.names += [s.name for sc in resource.scope_spans for s in sc.spans]
        self.server.paths.add(self.path)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def collecting() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            collector.shutdown()
            thread.join(10)


def test_spans_reach_a_collector_over_http(
    serve_on_socket: Any, engine: Any, image64: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx2

    monkeypatch.setenv("OTEL_SERVICE_NAME", "renamed")
    with collecting() as collector:
        endpoint = f"http://127.0.0.1:{collector.server_address[1]}/v1/traces"
        with serve_on_socket(engine, otlp_endpoint=endpoint) as url:
            deadline = time.monotonic() + 10
            while httpx2.get(f"{url}/readyz").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            body = {"image": image64, "prompt": "x"}
            assert httpx2.post(f"{url}/segment", json=body).status_code == 200
        # The server has stopped, and sent what it had before.
        assert {*collector.names} == STAGES | {"POST /segment"}
        assert collector.paths == {"/v1/traces"}
        assert collector.resources[0]["service.name"] == "renamed"


@pytest.mark.catalogue("I9")
def test_a_collector_that_is_away_harms_no_request(
    serve_on_socket: Any, engine: Any, image64: str
) -> None:
    import httpx2

    began = time.monotonic()
    with serve_on_socket(engine, otlp_endpoint="http://127.0.0.1:9/v1/traces") as url:
        while httpx2.get(f"{url}/readyz").status_code != 200:
            time.sleep(0.01)
        for _ in range(3):
            body = {"image": image64, "prompt": "x"}
            assert httpx2.post(f"{url}/segment", json=body).status_code == 200
    assert time.monotonic() - began < 30


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "opentelemetry.sdk.trace",
        "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    ):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"otlp_endpoint needs: pip install .*otel"):
        Tracer.of(Settings(otlp_endpoint="http://127.0.0.1:9"))
    assert Tracer.of(Settings()) is None


def test_without_the_extra_everything_but_recording_works() -> None:
    code = """
import sys
sys.modules |= {"opentelemetry.sdk": None, "opentelemetry.exporter": None}
from starlette.testclient import TestClient
from simpleseg_server.app import create_app
from simpleseg_server.config import Settings
from simpleseg_server.engines.scripted import ScriptedEngine
with TestClient(create_app(Settings(), ScriptedEngine(["[]"]))) as client:
    print(client.get("/version", headers={"traceparent": sys.argv[1]}).status_code)
"""
    command = [sys.executable, "-c", code, CALLER["traceparent"]]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "200", run.stderr


def test_the_sdk_is_not_imported_unless_it_is_asked_for() -> None:
    code = "import sys, simpleseg_server.app, simpleseg_server.tracing as t\n"
    code += "from simpleseg_server.config import Settings\n"
    code += "t.Tracer.of(Settings()); print('opentelemetry.sdk' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
