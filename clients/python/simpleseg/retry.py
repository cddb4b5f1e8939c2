"""When a request is sent again, and after how long. No input or output."""

import random
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

RETRIED_STATUSES = frozenset({408, 409, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed: the server was busy, restarting or failed."""

LONGEST_OBEYED_S = 30.0
"""A longer wait asked for by the server is not waited: its answer is raised instead."""

_FIRST_BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 8.0


def backoff_s(attempt: int, draw: Callable[[], float] = random.random) -> float:
    """Seconds before retry number ``attempt`` (0 is the first): 0.5 doubled each time, at most 8.

    Up to a quarter is taken off by ``draw() in [0, 1)``, so that clients do not retry in step.

    >>> [backoff_s(n, lambda: 0.0) for n in (0, 1, 9)]
    [0.5, 1.0, 8.0]
    """
    full = min(_FIRST_BACKOFF_S * 2.0**attempt, _LONGEST_BACKOFF_S)
    return full * (1 - 0.25 * draw())


def requested_delay_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds that the server asks for in ``retry-after-ms`` or ``Retry-After``, else None.

    ``headers`` has lower-case names. ``Retry-After`` holds seconds or an HTTP date; a date in the
    past is 0. A header that holds neither is as if it were absent.

    >>> requested_delay_s({"retry-after-ms": "250", "retry-after": "1"})
    0.25
    """
    exact = _seconds(headers.get("retry-after-ms"))
    if exact is not None:
        return exact / 1000
    value = headers.get("retry-after")
    seconds = _seconds(value)
    return seconds if seconds is not None else _seconds_until(value, now or datetime.now(UTC))


def _seconds(value: str | None) -> float | None:
    try:
        seconds = float(value or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None


def _seconds_until(value: str | None, now: datetime) -> float | None:
    try:
        moment = parsedate_to_datetime(value or "")
    except ValueError:
        return None
    # A date without a zone is in UTC (RFC 9110, 5.6.7).
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - now).total_seconds())


def retry_delay_s(
    status: int,
    headers: Mapping[str, str],
    attempt: int,
    draw: Callable[[], float] = random.random,
) -> float | None:
    """Seconds before the request is sent again, or None where ``status`` is final.

    What the server asks for is obeyed, with up to a tenth more by ``draw() in [0, 1)``: it asks all
    clients for the same. ``x-should-retry: true`` or ``false`` from it overrules the status.
    """
    wish = headers.get("x-should-retry")
    if wish == "false" or (status not in RETRIED_STATUSES and wish != "true"):
        return None
    requested = requested_delay_s(headers)
    if requested is None:
        return backoff_s(attempt, draw)
    return requested * (1 + 0.1 * draw()) if requested <= LONGEST_OBEYED_S else None


class RetryBudget:
    """A token bucket that bounds retries by what succeeds, so that a server in trouble does not
    get a multiple of its load.

    Every retry takes a token, every answer that needs none gives ``earned`` back, up to
    ``capacity``. Without a token errors are raised at once. Clients and threads may share one.

    >>> budget = RetryBudget(capacity=1)
    >>> budget.take(), budget.take()
    (True, False)
    """

    def __init__(self, capacity: float = 20.0, earned: float = 0.1) -> None:
        self._capacity = capacity
        self._earned = earned
        self._tokens = capacity
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Whether one more retry is allowed; it is then counted."""
        with self._lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True

    def give(self) -> None:
        """Count an answer that no retry need follow."""
        with self._lock:
            self._tokens = min(self._capacity, self._tokens + self._earned)

    @property
    def is_spent(self) -> bool:
        """Whether no retry is allowed for now."""
        with self._lock:
            return self._tokens < 1
