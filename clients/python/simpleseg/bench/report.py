"""A benchmark's outcome as JSON, as Markdown and as a picture."""

# matplotlib tells the types of some arguments only.
# pyright: reportUnknownMemberType=false

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simpleseg.bench.result import PERCENTILES, LoadResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = (
    "load",
    "good/right/sent",
    "masks/s",
    "good/s",
    "p50 ms",
    "p90",
    "p99",
    "p99.9",
    "point",
)
_SLOW_GENERATOR = 0.8


@dataclass(frozen=True)
class Report:
    """All loads of one command, and what they were measured with. ``facts`` are JSON values:
    command, hardware, versions, server, input; ``capacity`` is the best step of a ramp."""

    facts: Mapping[str, Any]
    results: Sequence[LoadResult]
    capacity: LoadResult | None = None
    is_ramp: bool = False

    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = {**self.facts, "runs": [one.summary() for one in self.results]}
        if self.is_ramp:
            found["capacity"] = self.capacity and {
                "rate": self.capacity.load.level,
                "goodput_per_s": round(self.capacity.goodput_per_s, 3),
                "slo_ms": self.capacity.load.slo_ms,
            }
        return found

    def verdict(self) -> list[str]:
        """What a reader should know beside the table, in sentences."""
        said = [warning for result in self.results for warning in _warnings(result)]
        if any(0 < len(result.answered) < 1000 for result in self.results):
            said.append("A p99.9 of fewer than 1000 answers is their slowest.")
        if self.is_ramp and self.capacity is None:
            said.insert(0, "No rate was sustained: start lower, or allow more time.")
        elif self.capacity is not None:
            best = self.capacity
            said.insert(
                0,
                f"Best sustained goodput: {best.goodput_per_s:.2f}/s, offered {best.load.level:.4g}"
                f"/s, within {best.load.slo_ms:g} ms.",
            )
        return said


def name(result: LoadResult) -> str:
    """
    >>> from simpleseg.bench.load import Load
    >>> from simpleseg.bench.wire import Target
    >>> name(LoadResult(Target(), Load("poisson", 2.5), 0.0, (), 0.0, 0.0, 0.0, 0, 0, None))
    'poisson 2.5/s'
    """
    load = result.load
    return f"closed x{load.level:g}" if load.mode == "closed" else f"{load.mode} {load.level:.4g}/s"


def row(result: LoadResult) -> tuple[str, ...]:
    """The cells below ``COLUMNS``."""
    times = result.times_ms()
    latency, point = times["latency_ms"], times["first_point_ms"]
    right = sum(sample.is_right for sample in result.samples)
    return (
        name(result),
        f"{len(result.good)}/{right}/{len(result.samples)}",
        f"{result.masks_per_s:.2f}",
        f"{result.goodput_per_s:.2f}",
        *(_ms(latency, at) for at in PERCENTILES),
        _ms(point, "p50"),
    )


def _ms(times: Mapping[str, float] | None, at: str) -> str:
    if times is None:
        return "-"
    return f"{times[at]:.0f}" if times[at] >= 100 else f"{times[at]:.3g}"


def _warnings(result: LoadResult) -> list[str]:
    said: list[str] = []
    share = result.cpu_share
    if share > _SLOW_GENERATOR:
        said.append(
            f"{name(result)}: the generator used {share:.0%} of a core; it may be at fault."
        )
    troubles = [f"{count} {kind}" for kind, count in (result.errors + result.flaws).items()]
    if troubles:
        said.insert(0, f"{name(result)}: {', '.join(troubles)}.")
    return said


def write(report: Report, stem: Path) -> list[Path]:
    """STEM.json, STEM.md and STEM.png. Raises ModuleNotFoundError without matplotlib."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("json", "md", "png")]
    paths[0].write_text(json.dumps(report.document(), indent=1) + "\n", encoding="utf-8")
    paths[1].write_text(markdown(report, paths[2].name), encoding="utf-8")
    _draw(report, paths[2])
    return paths


def markdown(report: Report, picture: str) -> str:
    """The table, what it was measured on, and the picture."""
    lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    lines += [_line(row(result)) for result in report.results]
    facts = [f"- {key}: `{_told(value)}`" for key, value in report.facts.items()]
    said = [f"\n{sentence}" for sentence in report.verdict()]
    parts = ["# Load test", *said, "", *lines, "", f"![Latencies]({picture})", "", *facts]
    return "\n".join(parts) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _told(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _draw(report: Report, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.6), layout="constrained")
    percentiles, levels, times = figure.subplots(1, 3)
    for result in report.results:
        _percentile_curve(percentiles, result)
        _over_time(times, result)
    _axis_of_percentiles(percentiles)
    _by_level(levels, report)
    times.set(xlabel="due, seconds into the load", ylabel="latency, ms")
    _milliseconds(times)
    times.set_title("every request")
    figure.savefig(path, dpi=110)


def _percentile_curve(axes: "Axes", result: LoadResult) -> None:
    latencies = np.sort([1e3 * sample.latency_s for sample in result.answered])
    if not len(latencies):
        return
    # The k-th of n latencies is that of the share k/n; the last one's share stops short of all.
    above = 1 - np.arange(1, len(latencies) + 1) / (len(latencies) + 1)
    axes.step(1 / above, latencies, where="pre", label=name(result))


def _axis_of_percentiles(axes: "Axes") -> None:
    axes.set(xscale="log", xlabel="share of requests", ylabel="latency, ms")
    end = axes.get_xlim()[1]
    axes.set_xticks([1, 2, 10, 100, 1000], ["0 %", "50 %", "90 %", "99 %", "99.9 %"])
    axes.minorticks_off()
    axes.set_xlim(1, end)
    _milliseconds(axes)
    axes.set_title("latency from when a request was due")
    axes.grid(visible=True, alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8)


def _milliseconds(axes: "Axes") -> None:
    """A logarithmic axis with plain numbers, also where it spans less than a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _by_level(axes: "Axes", report: Report) -> None:
    ordered = sorted(report.results, key=lambda result: result.load.level)
    levels = [result.load.level for result in ordered]
    axes.plot(levels, [one.requests_per_s for one in ordered], "o-", label="answered")
    axes.plot(levels, [one.goodput_per_s for one in ordered], "s-", label="good (in time, right)")
    is_open = any(result.load.mode != "closed" for result in ordered)
    if is_open:
        axes.plot(levels, levels, ":", color="grey", label="offered")
    if report.capacity is not None:
        axes.axvline(report.capacity.load.level, color="grey", lw=0.8)
    unit = "requests offered per second" if is_open else "concurrency"
    axes.set(xlabel=unit, ylabel="requests per second", ylim=(0, None))
    axes.set_title("throughput and goodput")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)


def _over_time(axes: "Axes", result: LoadResult) -> None:
    due = [sample.due_s for sample in result.answered]
    axes.plot(due, [1e3 * sample.latency_s for sample in result.answered], ".", ms=4, alpha=0.7)
    axes.grid(visible=True, alpha=0.3)
