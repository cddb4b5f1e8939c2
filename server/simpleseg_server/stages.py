"""When the stages of a request ran, and how long they took."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

MOMENTS = ("first_token", "first_point")
"""What is marked once, as the time since the request's arrival."""


@dataclass(frozen=True)
class Interval:
    """One run of a stage, in seconds of ``time.perf_counter``."""

    stage: str
    began: float
    ended: float


@dataclass(frozen=True)
class Part:
    """The times of one prompt of a request, or of one request of a batch."""

    kind: Literal["prompt", "item"]
    index: int
    times: "StageTimes"


class StageTimes:
    """Milliseconds by stage; ``began``, in seconds of ``time.perf_counter``, is when this object
    was made.

    What follows each other adds up. Of parts, which run side by side, the slowest counts; a moment
    is that of the first part that comes to it.

    >>> times = StageTimes(); times.add("parse", 1.5); times.add("parse", 0.5); times.to_dict()
    {'parse': 2.0}
    >>> for index in (0, 1):
    ...     times.part("prompt", index).add("parse", index + 1.0)
    >>> times.to_dict()
    {'parse': 4.0}
    """

    def __init__(self, above: "StageTimes | None" = None) -> None:
        self._above = above
        self._ms: dict[str, float] = {}
        self._intervals: list[Interval] = []
        self._slowest: dict[str, Interval] = {}
        self._parts: list[Part] = []
        self._lock = threading.Lock()
        self.began = time.perf_counter()

    def part(self, kind: Literal["prompt", "item"], index: int) -> "StageTimes":
        """The times of a part that begins now."""
        times = StageTimes(self)
        self._parts.append(Part(kind, index, times))
        return times

    def add(self, stage: str, ms: float) -> None:
        """Add to a stage, from any thread: work that was done one after the other."""
        with self._lock:
            self._ms[stage] = self._ms.get(stage, 0.0) + ms

    def at_least(self, stage: str, ms: float) -> None:
        """Raise a stage to ``ms``: the slowest of what ran side by side counts."""
        if ms >= self._ms.get(stage, 0.0):
            self._ms[stage] = ms
            now = time.perf_counter()
            self._slowest[stage] = Interval(stage, now - ms / 1000, now)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            ended = time.perf_counter()
            self.add(stage, (ended - began) * 1000)
            self._intervals.append(Interval(stage, began, ended))

    def mark(self, moment: str) -> None:
        """Set a moment to the time since the start, the first time that it is marked."""
        self._ms.setdefault(moment, self.elapsed_ms())
        if self._above is not None:
            self._above.mark(moment)

    @property
    def intervals(self) -> tuple[Interval, ...]:
        """When the stages that were measured began and ended, without those of parts."""
        return tuple(self._intervals)

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(self._parts)

    @property
    def ended(self) -> float:
        """When the last stage ended, in parts or not; ``began`` where there is none."""
        runs = (*self._intervals, *self._slowest.values())
        return max(
            [self.began, *(run.ended for run in runs), *(p.times.ended for p in self._parts)]
        )

    def slowest(self, stage: str) -> Interval | None:
        """When the slowest run that ``at_least`` was told of took place, if it told at once."""
        return self._slowest.get(stage)

    def elapsed_ms(self) -> float:
        """Milliseconds since this object was made."""
        return (time.perf_counter() - self.began) * 1000

    def to_dict(self) -> dict[str, float]:
        """Stages to milliseconds, rounded to microseconds."""
        slowest: dict[str, float] = {}
        for part in self._parts:
            for stage, ms in part.times.to_dict().items():
                if stage not in (*MOMENTS, "total"):
                    slowest[stage] = max(ms, slowest.get(stage, 0.0))
        both = {s: self._ms.get(s, 0.0) + slowest.get(s, 0.0) for s in self._ms | slowest}
        return {stage: round(ms, 3) for stage, ms in both.items()}

    def by_request(self) -> list[dict[str, float]]:
        """What ``to_dict`` gives, for a batch and for each request in it on its own."""
        items = [part.times for part in self._parts if part.kind == "item"]
        if not items:
            return [self.to_dict()]
        own = {stage: ms for stage, ms in self._ms.items() if stage not in MOMENTS}
        return [own, *(item.to_dict() for item in items)]
