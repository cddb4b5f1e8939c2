"""What a load came to: samples, and the figures made of them."""

# The histogram's library has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from simpleseg.bench.wire import Target

if TYPE_CHECKING:
    from hdrh.histogram import HdrHistogram

    from simpleseg.bench.load import Load

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99_9": 99.9}
_HIGHEST_US = 3_600_000_000
_DIGITS = 3


@dataclass(frozen=True, slots=True)
class Sample:
    """One request that counts. Times are in seconds since the load began; None is what did not
    happen. ``error`` is why there is no answer, ``flaw`` what is wrong with the answer."""

    due_s: float
    sent_s: float
    done_s: float
    prompts: int
    first_byte_s: float | None = None
    first_token_s: float | None = None
    first_point_s: float | None = None
    tokens: int | None = None
    error: str | None = None
    flaw: str | None = None

    @property
    def is_right(self) -> bool:
        return self.error is None and self.flaw is None

    @property
    def latency_s(self) -> float:
        """From when it was due."""
        return self.done_s - self.due_s

    @property
    def per_token_s(self) -> float | None:
        """The time for each token after the first."""
        if self.first_token_s is None or self.tokens is None or self.tokens < 2:
            return None
        return (self.done_s - self.first_token_s) / (self.tokens - 1)


def histogram(values_s: Iterable[float]) -> "HdrHistogram":
    """An HDR histogram of microseconds, to three digits, up to an hour."""
    from hdrh.histogram import HdrHistogram

    made = HdrHistogram(1, _HIGHEST_US, _DIGITS)
    for value in values_s:
        made.record_value(min(max(round(value * 1e6), 1), _HIGHEST_US))
    return made


def percentiles_ms(values_s: Iterable[float]) -> dict[str, float] | None:
    """Percentiles, mean and maximum in milliseconds, and of how many; None of nothing."""
    made: Any = histogram(values_s)
    if not made.get_total_count():
        return None
    points_us: dict[str, float] = {"mean": made.get_mean_value(), "max": made.get_max_value()}
    for name, at in PERCENTILES.items():
        points_us[name] = made.get_value_at_percentile(at)
    points_ms = {name: round(us / 1e3, 3) for name, us in points_us.items()}
    return points_ms | {"count": made.get_total_count()}


@dataclass(frozen=True)
class LoadResult:
    """The samples of a load, in the order of their ends, and its figures.

    Latencies are of requests that were answered, right or wrong; errors are counted beside them.
    Rates are over ``elapsed_s``, from when the first request that counts was due to the end of the
    last one. A good answer is right and within the load's ``slo_ms``.
    """

    target: Target
    load: "Load"
    started_unix: float
    samples: tuple[Sample, ...]
    cpu_share: float
    cpu_s: float
    reuse_share: float
    golden_compared: int
    golden_changed: int
    mean_truth_iou: float | None

    @cached_property
    def answered(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.error is None]

    @cached_property
    def errors(self) -> Counter[str]:
        return Counter(sample.error for sample in self.samples if sample.error is not None)

    @cached_property
    def flaws(self) -> Counter[str]:
        return Counter(sample.flaw for sample in self.samples if sample.flaw is not None)

    @cached_property
    def good(self) -> list[Sample]:
        slo_ms = self.load.slo_ms
        limit_s = float("inf") if slo_ms is None else slo_ms / 1e3
        return [one for one in self.samples if one.is_right and one.latency_s <= limit_s]

    @cached_property
    def elapsed_s(self) -> float:
        """At least the load's own duration, in an open loop: idle time at its end counts."""
        if not self.samples:
            return 0.0
        first = min(sample.due_s for sample in self.samples)
        last = max(sample.done_s for sample in self.samples)
        if self.load.mode != "closed" and self.load.requests is None:
            first = self.load.warmup_s
            last = max(last, self.load.warmup_s + self.load.duration_s)
        return last - first

    @property
    def good_share(self) -> float:
        return len(self.good) / len(self.samples) if self.samples else 0.0

    @property
    def goodput_per_s(self) -> float:
        """Good answers per second."""
        return self._rate(len(self.good))

    @property
    def masks_per_s(self) -> float:
        """Prompts answered rightly per second, whether in time or not."""
        return self._rate(sum(one.prompts for one in self.samples if one.is_right))

    @property
    def requests_per_s(self) -> float:
        return self._rate(len(self.answered))

    @property
    def tokens_per_s(self) -> float:
        return self._rate(sum(sample.tokens or 0 for sample in self.answered))

    def _rate(self, count: int) -> float:
        return count / self.elapsed_s if self.elapsed_s > 0 else 0.0

    def times_s(self, what: Callable[[Sample], float | None]) -> list[float]:
        """A time of every request that was answered and has it."""
        found = (what(sample) for sample in self.answered)
        return [value for value in found if value is not None]

    def times_ms(self) -> dict[str, dict[str, float] | None]:
        """Percentiles of every kind of time; None where there is no such time."""

        def since_due(name: str) -> list[float]:
            def wait(sample: Sample) -> float | None:
                end: float | None = getattr(sample, name)
                return None if end is None else end - sample.due_s

            return self.times_s(wait)

        return {
            "latency_ms": percentiles_ms(since_due("done_s")),
            "first_byte_ms": percentiles_ms(since_due("first_byte_s")),
            "first_token_ms": percentiles_ms(since_due("first_token_s")),
            "first_point_ms": percentiles_ms(since_due("first_point_s")),
            "per_token_ms": percentiles_ms(self.times_s(lambda sample: sample.per_token_s)),
            "send_lag_ms": percentiles_ms(one.sent_s - one.due_s for one in self.samples),
        }

    def summary(self) -> dict[str, Any]:
        """Everything as JSON values; ``latency_hdr`` is HdrHistogram's own compressed form, in
        microseconds, which other tools can read and add up."""
        load = self.load
        return {
            "mode": load.mode,
            "level": load.level,
            "warmup_s": load.warmup_s,
            "slo_ms": load.slo_ms,
            "reuse": load.reuse,
            "seed": load.seed,
            "sent": len(self.samples),
            "answered": len(self.answered),
            "right": sum(sample.is_right for sample in self.samples),
            "good": len(self.good),
            "errors": dict(self.errors),
            "flaws": dict(self.flaws),
            "elapsed_s": round(self.elapsed_s, 3),
            "requests_per_s": round(self.requests_per_s, 3),
            "masks_per_s": round(self.masks_per_s, 3),
            "output_tokens_per_s": round(self.tokens_per_s, 1),
            "goodput_per_s": round(self.goodput_per_s, 3),
            "good_share": round(self.good_share, 4),
            **self.times_ms(),
            "golden_compared": self.golden_compared,
            "golden_changed": self.golden_changed,
            "mean_iou": None if self.mean_truth_iou is None else round(self.mean_truth_iou, 4),
            "image_reuse": round(self.reuse_share, 3),
            "generator": self._generator(),
            "latency_hdr": self._latency_hdr(),
        }

    def _latency_hdr(self) -> str:
        made: Any = histogram(one.latency_s for one in self.answered)
        return str(made.encode(), "ascii")

    def _generator(self) -> dict[str, float]:
        """What this program itself cost, while it measured."""
        each = self.cpu_s / len(self.samples) if self.samples else 0.0
        return {
            "cpu_ms_per_request": round(each * 1e3, 3),
            "cpu_share_of_a_core": round(self.cpu_share, 3),
        }
