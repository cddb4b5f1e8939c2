"""What one API key may use: requests in a minute and requests at a time."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from simpleseg_server.errors import ApiError
from simpleseg_server.keys import Key


class Bucket:
    """A token bucket: ``per_minute`` requests at once, and then one each 60 / ``per_minute`` s.

    >>> bucket = Bucket(2, now=0.0)
    >>> bucket.take(0.0), bucket.take(0.0), bucket.take(0.0), bucket.take(30.0)
    (0.0, 0.0, 30.0, 0.0)
    """

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at = now

    def take(self, now: float) -> float:
        """Take one token: 0.0, or the seconds until there is one."""
        self._fill(now)
        if self._level >= 1:
            self._level -= 1
            return 0.0
        return (1 - self._level) * 60 / self.per_minute

    def remaining(self, now: float) -> int:
        self._fill(now)
        return int(self._level)

    def full_after_s(self, now: float) -> float:
        """Seconds until nothing of the past counts any more."""
        self._fill(now)
        return (self.per_minute - self._level) * 60 / self.per_minute

    def _fill(self, now: float) -> None:
        gained = (now - self._at) * self.per_minute / 60
        # Rounded, since 60 thirds of a token must make 20.
        self._level = min(float(self.per_minute), round(self._level + gained, 9))
        self._at = now


@dataclass
class _Account:
    """What one key has used; ``key`` tells when its limits have changed."""

    key: Key
    bucket: Bucket | None
    running: int = 0


class Quotas:
    """The accounts of all keys: as many as there are keys, whatever clients send."""

    def __init__(self, retry_after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._retry_after_s = retry_after_s
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    def enter(self, key: Key) -> None:
        """Begin a request; ``leave`` ends it. Raises ApiError 429 ``rate_limit_exceeded``."""
        account = self._account(key)
        most = key.max_concurrent_requests
        if most is not None and account.running >= most:
            raise _exceeded(f"at most {most} requests at a time", self._retry_after_s)
        wait_s = 0.0 if account.bucket is None else account.bucket.take(self._clock())
        if wait_s:
            raise _exceeded(f"at most {key.requests_per_minute} requests in a minute", wait_s)
        account.running += 1

    def leave(self, key: Key) -> None:
        self._accounts[key.name].running -= 1

    def headers(self, key: Key) -> dict[str, str]:
        """``x-ratelimit-*`` as clients of OpenAI's API read them; none for a key without a rate."""
        bucket, now = self._account(key).bucket, self._clock()
        if bucket is None:
            return {}
        return {
            "x-ratelimit-limit-requests": str(bucket.per_minute),
            "x-ratelimit-remaining-requests": str(bucket.remaining(now)),
            "x-ratelimit-reset-requests": duration(bucket.full_after_s(now)),
        }

    def _account(self, key: Key) -> _Account:
        account = self._accounts.get(key.name)
        if account is None:
            account = self._accounts[key.name] = _Account(key, self._bucket(key))
        elif account.key.requests_per_minute != key.requests_per_minute:
            account.bucket = self._bucket(key)
        account.key = key
        return account

    def _bucket(self, key: Key) -> Bucket | None:
        rate = key.requests_per_minute
        return None if rate is None else Bucket(rate, self._clock())


def _exceeded(message: str, retry_after_s: float) -> ApiError:
    return ApiError(429, "rate_limit_exceeded", message, retry_after_s=retry_after_s)


def duration(seconds: float) -> str:
    """Seconds as OpenAI writes them, rounded up.

    >>> duration(0), duration(0.02), duration(59.2), duration(61)
    ('0s', '20ms', '60s', '1m1s')
    """
    if 0 < seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    whole = math.ceil(seconds)
    return f"{whole}s" if whole <= 60 else f"{whole // 60}m{whole % 60}s"
