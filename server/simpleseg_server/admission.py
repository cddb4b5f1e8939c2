"""Admission: how many requests are in the house and how many prompts the engine works on at once.

``enter`` is taken before the body is read, so that a full server refuses cheaply; ``slot`` is taken
for each prompt just before the engine, first come first served.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from simpleseg_server.errors import overloaded


class Admission:
    """Bounds of one server; used from its event loop only.

    At most ``slots`` prompts run at once, and at most ``slots + max_queued_requests`` requests are
    admitted: at worst each of the running prompts belongs to a request of its own.
    """

    def __init__(self, *, slots: int, max_queued_requests: int, retry_after_s: float) -> None:
        self.slots = slots
        self._slots = asyncio.Semaphore(slots)
        self._max_requests = slots + max_queued_requests
        self._retry_after_s = retry_after_s
        self._requests = 0
        self._waiting = 0

    @property
    def requests(self) -> int:
        """Admitted requests that are not answered yet."""
        return self._requests

    @property
    def waiting_prompts(self) -> int:
        """Prompts that wait for a slot."""
        return self._waiting

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Hold a place for one request. Raises ApiError 503 ``overloaded`` where none is left."""
        if self._requests >= self._max_requests:
            raise overloaded(self._retry_after_s)
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    @asynccontextmanager
    async def slot(self, clock: Callable[[], float] = time.perf_counter) -> AsyncIterator[float]:
        """Hold the engine for one prompt; yields the milliseconds that it waited."""
        began = clock()
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        try:
            yield (clock() - began) * 1000
        finally:
            self._slots.release()
