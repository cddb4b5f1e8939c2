"""The servers behind the remote engine: which of them can answer, and which one is asked.

No input or output here: ``remote.py`` tells what happened to each request.
"""

import asyncio
import math
import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from simpleseg.retry import backoff_s
from simpleseg_server.affinity import affinity, fair_share

BreakerState = Literal["closed", "open", "half-open"]

LONGEST_BUSY_S = 30.0
"""An upstream that asks for a longer wait is asked again after this one."""


@dataclass(frozen=True)
class Address:
    """Where an upstream is, and its share of the requests relative to the others.

    ``url`` is without ``/v1`` and without a final slash.

    >>> Address.parse("http://gpu-1:8000/v1,2")
    Address(url='http://gpu-1:8000', weight=2.0)
    """

    url: str
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Raises ValueError unless the text is ``URL`` or ``URL,WEIGHT``; it is not repeated in
        the message, since it may hold a password."""
        url, comma, weight = text.partition(",")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not _has_port(parts):
            raise ValueError("an upstream is an http(s) URL, with a weight after a comma if wanted")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("an upstream's URL has no password, query or fragment")
        if comma and not re.fullmatch(r"0*[1-9]\d{0,3}(\.\d+)?|0\.\d*[1-9]\d*", weight):
            raise ValueError("an upstream's weight is a number above 0")
        return cls(url.rstrip("/").removesuffix("/v1"), float(weight) if comma else 1.0)


def _has_port(parts: SplitResult) -> bool:
    """Whether its port, if it names one, can be one."""
    try:
        return parts.port != 0
    except ValueError:
        return False


class Breaker:
    """Keeps requests from an upstream that fails, and lets one trial through at a time.

    It begins open: an upstream is admitted by a trial. Closed, ``threshold`` failures in a row open
    it, or a single decisive one. Open, it waits twice as long after each failed trial, 8 seconds
    at most.

    >>> breaker = Breaker(threshold=1); breaker.state
    'open'
    >>> breaker.begin_trial(); breaker.succeed(); breaker.state
    'closed'
    >>> breaker.fail(); breaker.state
    'open'
    """

    def __init__(self, *, threshold: int = 3, clock: Callable[[], float] = time.monotonic) -> None:
        self._threshold = threshold
        self._clock = clock
        self._state: BreakerState = "open"
        self._failures = 0
        self._failed_trials = 0
        self._opens_at = clock()

    @property
    def state(self) -> BreakerState:
        return self._state

    @property
    def wait_s(self) -> float:
        """Seconds until the next trial may begin."""
        return max(0.0, self._opens_at - self._clock()) if self._state == "open" else 0.0

    def begin_trial(self) -> None:
        self._state = "half-open"

    def succeed(self) -> None:
        self._failures = self._failed_trials = 0
        self._state = "closed"

    def fail(self, *, decisive: bool = False) -> None:
        """An answer or a trial failed; nothing where it is open already."""
        if self._state == "open":
            return
        self._failures += 1
        if self._state == "half-open" or decisive or self._failures >= self._threshold:
            self._opens_at = self._clock() + backoff_s(self._failed_trials)
            self._failed_trials += 1
            self._failures = 0
            self._state = "open"


@dataclass(eq=False)
class Upstream:
    """One server: its address, what it serves and how it is doing.

    ``model`` and ``max_model_len`` are known once it was admitted; ``running`` counts the answers
    that it is writing for us; until ``busy_until`` it is asked only where no other is left.
    """

    address: Address
    api_key: str | None = field(default=None, repr=False)
    breaker: Breaker = field(default_factory=Breaker)
    clock: Callable[[], float] = time.monotonic
    model: str = ""
    max_model_len: int | None = None
    running: int = 0
    busy_until: float = -math.inf
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_available(self) -> bool:
        return self.breaker.state == "closed"

    @property
    def is_busy(self) -> bool:
        return self.clock() < self.busy_until

    @property
    def load(self) -> float:
        """Running answers per unit of weight."""
        return self.running / self.address.weight

    def succeed(self) -> None:
        """It answered. While it is out, only its trial decides, not what began before."""
        if self.is_available:
            self.breaker.succeed()

    def fail(self, *, decisive: bool = False) -> None:
        """It did not answer; wakes whoever waits for ``opened`` where that was enough."""
        if not self.is_available:
            return
        self.breaker.fail(decisive=decisive)
        if self.breaker.state == "open":
            self.opened.set()

    def refuse_for(self, seconds: float | None) -> None:
        """It has too much to do; ``seconds`` is the wait that it asked for."""
        self.busy_until = self.clock() + min(1.0 if seconds is None else seconds, LONGEST_BUSY_S)

    @contextmanager
    def counted(self) -> Iterator[None]:
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1


def choose(
    upstreams: Sequence[Upstream], image_key: str, tried: Collection[Upstream]
) -> Upstream | None:
    """The upstream to ask next, None where none is left.

    Requests for one image go to one upstream, which has cached it, as long as that one holds no
    more than 1.25 of its share; then to the least loaded. Upstreams that said that they are busy
    come last.
    """
    left = [one for one in upstreams if one.is_available and one not in tried]
    left = [one for one in left if not one.is_busy] or left
    if not left:
        return None
    preferred = max(left, key=lambda one: affinity(one.address.url, image_key, one.address.weight))
    if tried or preferred.running < _fair_share(preferred, left):
        return preferred
    return min(left, key=lambda one: one.load)


def _fair_share(upstream: Upstream, among: Sequence[Upstream]) -> int:
    weight = sum(one.address.weight for one in among)
    return fair_share(sum(one.running for one in among), upstream.address.weight / weight)
