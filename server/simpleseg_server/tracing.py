"""Traces in the W3C format: accepted from callers, passed on, and with the extra ``otel`` recorded.

One span for each request, one below it for each stage; each request of a batch and each of several
prompts has a span of its own for its stages. Nothing of OpenTelemetry is imported unless
``otlp_endpoint`` is set. Without it a caller's context is still passed on to the servers that a
request asks, and its trace id is in the log.
"""

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from simpleseg import __version__
from simpleseg_server.config import ConfigError, Settings
from simpleseg_server.stages import MOMENTS, Interval, StageTimes

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

EXPORT_TIMEOUT_S = 5.0
_ONE_AFTER_THE_OTHER = ("queue", "preprocess", "prefill")
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_TRACESTATE = re.compile(r"[ -~]{1,512}")

_outgoing: ContextVar[Mapping[str, str]] = ContextVar("outgoing", default=MappingProxyType({}))


def outgoing_headers() -> dict[str, str]:
    """``traceparent`` and perhaps ``tracestate`` for whatever is asked on behalf of the request
    under way; empty outside of a request and for one without a trace. Call it in the request's
    task, or in one that it made."""
    return dict(_outgoing.get())


def accepted(headers: Mapping[str, str]) -> dict[str, str]:
    """A caller's context if it is sound, else nothing.

    >>> parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    >>> accepted({"traceparent": parent, "tracestate": "a=1"}).keys()
    dict_keys(['traceparent', 'tracestate'])
    >>> accepted({"traceparent": "00-0-0-01", "tracestate": "a=1"})
    {}
    """
    parent, state = headers.get("traceparent", ""), headers.get("tracestate", "")
    if not _TRACEPARENT.fullmatch(parent):
        return {}
    return {"traceparent": parent} | ({"tracestate": state} if _TRACESTATE.fullmatch(state) else {})


def trace_id_in(context: Mapping[str, str]) -> str | None:
    """The trace id of a sound ``traceparent``."""
    match = _TRACEPARENT.fullmatch(context.get("traceparent", ""))
    return None if match is None else match["trace"]


class Tracer:
    """Makes spans with OpenTelemetry's SDK, which the extra ``otel`` installs."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("simpleseg_server", __version__)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def of(cls, settings: Settings) -> "Tracer | None":
        """One that sends to ``otlp_endpoint``, or None without it. The SDK's own variables
        (``OTEL_SERVICE_NAME``, ``OTEL_EXPORTER_OTLP_HEADERS``, ...) hold too.

        Raises ConfigError where the extra is not installed.
        """
        if settings.otlp_endpoint is None:
            return None
        try:
            return cls(_provider(settings.otlp_endpoint, settings.trace_sample_ratio))
        except ModuleNotFoundError as error:
            message = "otlp_endpoint needs: pip install 'simpleseg-server[server,otel]'"
            raise ConfigError(message) from error

    def close(self) -> None:
        """Send what is left; blocks for at most a few seconds."""
        self._provider.shutdown()

    def start(self, headers: Mapping[str, str]) -> "Span":
        """The span of a request, below the caller's if there is one."""
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind

        parent = self._propagator.extract(accepted(headers), Context())
        return self._tracer.start_span("request", parent, SpanKind.SERVER)

    def headers_of(self, span: "Span") -> dict[str, str]:
        """The context to pass on below a span."""
        from opentelemetry.trace import set_span_in_context

        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span))
        return carrier

    def finish(self, span: "Span", scope: Scope, status: int) -> None:
        """Name the span by its route, add the stages below it, and end it."""
        from opentelemetry.trace import StatusCode

        if span.is_recording():
            route = getattr(scope.get("route"), "path", None)
            span.update_name(f"{scope['method']} {route}" if route else scope["method"])
            span.set_attributes(_attributes(scope, route, status))
            if status >= 500:
                span.set_status(StatusCode.ERROR)
            clock_ns = time.time_ns() - time.perf_counter_ns()
            self._add_stages(span, scope["state"]["times"], clock_ns)
        span.end()

    def _add_stages(self, span: "Span", times: StageTimes, clock_ns: int) -> None:
        """Below a span one for each stage, and one for each part with its own stages below that;
        ``clock_ns`` is the time of day when ``time.perf_counter`` was 0."""
        from opentelemetry.trace import set_span_in_context

        below = set_span_in_context(span)

        def at_ns(at: float) -> int:
            return clock_ns + int(at * 1e9)

        for name, at in _marks(times):
            span.add_event(name, timestamp=at_ns(at))
        for stage in intervals_of(times):
            began = self._tracer.start_span(stage.stage, below, start_time=at_ns(stage.began))
            began.end(at_ns(stage.ended))
        for part in times.parts:
            index, began_ns = {"simpleseg.index": part.index}, at_ns(part.times.began)
            child = self._tracer.start_span(part.kind, below, attributes=index, start_time=began_ns)
            self._add_stages(child, part.times, clock_ns)
            child.end(at_ns(part.times.ended))


def _provider(endpoint: str, ratio: float) -> "TracerProvider":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    name = os.environ.get("OTEL_SERVICE_NAME", "simpleseg-server")
    resource = Resource.create({"service.name": name, "service.version": __version__})
    provider = TracerProvider(
        sampler=ParentBasedTraceIdRatio(ratio), resource=resource, shutdown_on_exit=False
    )
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _attributes(scope: Scope, route: str | None, status: int) -> dict[str, Any]:
    """By OpenTelemetry's conventions for HTTP servers; nothing that a client wrote."""
    attributes = {
        "http.request.method": scope["method"],
        "http.response.status_code": status,
        "simpleseg.request_id": scope["state"]["request_id"],
    }
    return attributes | ({} if route is None else {"http.route": route})


def _marks(times: StageTimes) -> Iterator[tuple[str, float]]:
    for name, ms in times.to_dict().items():
        if name in MOMENTS:
            yield name, times.began + ms / 1000


def intervals_of(times: StageTimes) -> list[Interval]:
    """When each stage ran: those that were measured, and, inside ``generate``, those of which an
    engine tells only how long they took, one after the other."""
    found, generate = list(times.intervals), times.slowest("generate")
    if generate is None:
        return found
    found.append(generate)
    at, took_ms = generate.began, times.to_dict()
    for stage in _ONE_AFTER_THE_OTHER:
        ended = min(at + took_ms.get(stage, 0.0) / 1000, generate.ended)
        found.append(Interval(stage, at, ended))
        at = ended
    found.append(Interval("decode", at, generate.ended))
    return found


class Tracing:
    """Takes a caller's context, and records a span where there is a tracer.

    Inside ``RequestContext``. Probes and scrapes are not traced.
    """

    def __init__(self, app: ASGIApp, tracer: Tracer | None, untraced: frozenset[str]) -> None:
        self.app = app
        self._tracer = tracer
        self._untraced = untraced

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._untraced:
            await self.app(scope, receive, send)
            return
        headers = dict(Headers(scope=scope))
        if self._tracer is None:
            await self._passing_on(accepted(headers), scope, receive, send)
            return
        span, status = self._tracer.start(headers), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._passing_on(self._tracer.headers_of(span), scope, receive, watched)
        finally:
            self._tracer.finish(span, scope, status)

    async def _passing_on(
        self, context: Mapping[str, str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        scope["state"]["trace_id"] = trace_id_in(context)
        token = _outgoing.set(context)
        try:
            await self.app(scope, receive, send)
        finally:
            _outgoing.reset(token)
