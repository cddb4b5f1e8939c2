"""Prometheus metrics.

Labels come from fixed sets, so that no client can grow the number of series. Nothing here holds a
prompt or an image.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from simpleseg import __version__
from simpleseg.schema import Result, SegmentResponse, Usage
from simpleseg_polygon.codec import WarningCode
from simpleseg_polygon.geometry import Region
from simpleseg_polygon.grammar import fingerprint
from simpleseg_server.engines.base import MeasuredEngine
from simpleseg_server.logs import LineHandler
from simpleseg_server.stages import StageTimes

logger = logging.getLogger("simpleseg_server")

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter

STAGES = (
    "read_body",
    "fetch",
    "decode_image",
    "preprocess",
    "queue",
    "ttft",
    "prefill",
    "decode",
    "generate",
    "parse",
    "rasterize",
    "encode",
)
"""The stages that always have a histogram; ``ttft``, the time to the first token, begins when the
request comes in, as ``first_token`` in a response does."""

RECOVERIES = frozenset(get_args(WarningCode))
"""Codes of warnings that tell of a text from which a part was saved."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_COUNTS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)

_TOKENS_PER_STEP = (1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 8, 12)


class Metrics:
    """The Prometheus metrics of one server, in a registry of their own or the one given."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.requests = Counter(
            "simpleseg_requests",
            "Requests by route, model, status and outcome.",
            ("route", "model", "status", "outcome"),
            registry=self.registry,
        )
        self.request_seconds = self._histogram(
            "simpleseg_request_duration_seconds", "Time to answer.", _SECONDS, ("route",)
        )
        self.stage_seconds = self._histogram(
            "simpleseg_stage_duration_seconds", "Time in a stage.", _SECONDS, ("stage",)
        )
        for stage in STAGES:
            self.stage_seconds.labels(stage)
        self.first_point_seconds = self._histogram(
            "simpleseg_time_to_first_point_seconds", "Time to the first vertex.", _SECONDS
        )
        self.points = self._histogram("simpleseg_polygon_points", "Vertices of a region.", _COUNTS)
        self.polygons = self._histogram(
            "simpleseg_polygons_per_result", "Parts of a region.", _COUNTS
        )
        self.completion_tokens = self._histogram(
            "simpleseg_completion_tokens", "Answer tokens of a request.", _COUNTS
        )
        self.forward_passes = self._histogram(
            "simpleseg_forward_passes", "Decode steps of a request.", _COUNTS
        )
        self.tokens_per_step = self._histogram(
            "simpleseg_tokens_per_step", "Answer tokens for each decode step.", _TOKENS_PER_STEP
        )
        self.draft_tokens = Counter(
            "simpleseg_draft_tokens",
            "Drafted tokens that the model verified, by kind: accepted or rejected.",
            ("kind", "outcome"),
            registry=self.registry,
        )
        self.parses = Counter(
            "simpleseg_parse", "Results by status.", ("outcome",), registry=self.registry
        )
        self.rejections = Counter(
            "simpleseg_rejections", "Refused requests by code.", ("reason",), registry=self.registry
        )
        self.disconnects = Counter(
            "simpleseg_client_disconnects", "Clients that hung up early.", registry=self.registry
        )
        self.fetches = self._counter(
            "simpleseg_image_fetch", "Images fetched by URL, by outcome.", "outcome"
        )
        self.decoder_deaths = self._counter(
            "simpleseg_decoder_deaths", "Processes that an image file ended, by reason.", "reason"
        )
        self.image_cache = self._counter(
            "simpleseg_image_cache", "Images looked up instead of sent, by outcome.", "outcome"
        )
        self.decoded_images = self._counter(
            "simpleseg_decoded_image_cache",
            "Image files looked for among those decoded before, by outcome.",
            "outcome",
        )
        self.in_flight = self._gauge("simpleseg_in_flight", "Requests admitted, not answered yet.")
        self.queue_depth = self._gauge("simpleseg_queue_depth", "Prompts waiting for the engine.")
        self._log_lines = self._gauge(
            "simpleseg_log_lines_dropped", "Log lines that could not be written, since the start."
        )
        self._log_lines.set_function(lambda: LineHandler.dropped)
        self._info = Info("simpleseg_build", "Version, model and grammar.", registry=self.registry)
        self._model = ""
        if registry is None:
            ProcessCollector(registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()
    ) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, text: str, label: str) -> Counter:
        return Counter(name, text, (label,), registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)

    def watch(self, requests: Callable[[], float], waiting_prompts: Callable[[], float]) -> None:
        """Read the gauges from these functions whenever they are scraped."""
        self.in_flight.set_function(requests)
        self.queue_depth.set_function(waiting_prompts)

    def show(self, engine: MeasuredEngine) -> None:
        """Add the engine's own metrics to ours, as they are."""
        self.registry.register(engine)

    def describe(self, *, model: str, engine: str) -> None:
        self._model = model
        self._info.info(
            {"version": __version__, "model": model, "engine": engine, "grammar": fingerprint()}
        )

    def observe_request(self, route: str, status: int, seconds: float, times: StageTimes) -> None:
        """Count a request that is over, and where its time went, or that of each in a batch."""
        self.requests.labels(route, self._model, str(status), outcome_of(status)).inc()
        self.request_seconds.labels(route).observe(seconds)
        for timings_ms in times.by_request():
            self._observe_stages(timings_ms)

    def _observe_stages(self, timings_ms: Mapping[str, float]) -> None:
        for name, ms in timings_ms.items():
            stage = "ttft" if name == "first_token" else name
            if stage == "first_point":
                self.first_point_seconds.observe(ms / 1000)
            elif stage in STAGES:
                self.stage_seconds.labels(stage).observe(ms / 1000)

    def observe_response(self, response: SegmentResponse, regions: Sequence[Region | None]) -> None:
        """Count what a segmentation gave; ``regions`` are those of the results, in order."""
        recovered = {w.result for w in response.warnings if w.code in RECOVERIES}
        self.completion_tokens.observe(response.usage.completion_tokens)
        self._observe_drafting(response.usage)
        for result, region in zip(response.results, regions, strict=True):
            self._observe_result(result, region, result.index in recovered)

    def _observe_drafting(self, usage: Usage) -> None:
        self.forward_passes.observe(usage.forward_passes)
        if usage.forward_passes:
            self.tokens_per_step.observe(usage.completion_tokens / usage.forward_passes)
        for kind, count in (usage.drafts or {}).items():
            # vLLM does not tell the kind of what it rejects: no series then, instead of a zero.
            for outcome, tokens in (("accepted", count.accepted), ("rejected", count.rejected)):
                if tokens:
                    self.draft_tokens.labels(kind, outcome).inc(tokens)

    def _observe_result(self, result: Result, region: Region | None, is_recovered: bool) -> None:
        is_recovered = is_recovered and result.status == "ok"
        self.parses.labels("recovered" if is_recovered else result.status).inc()
        if region is not None:
            self.polygons.observe(len(region.parts))
            self.points.observe(sum(map(len, region.parts)))

    def exposition(self) -> tuple[bytes, str]:
        """The text for a scrape and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


def outcome_of(status: int) -> str:
    """
    >>> outcome_of(200), outcome_of(413), outcome_of(503)
    ('ok', 'rejected', 'unavailable')
    """
    if status < 400:
        return "ok"
    if status == 499:
        return "client_closed"
    if status < 500:
        return "rejected"
    return "unavailable" if status == 503 else "failed"


def server_timing(timings_ms: Mapping[str, float]) -> str:
    """The value of a ``Server-Timing`` header.

    >>> server_timing({"parse": 1.5, "total": 20})
    'parse;dur=1.5, total;dur=20'
    """
    return ", ".join(f"{stage};dur={ms:g}" for stage, ms in timings_ms.items())
