"""A second try beside a first one that is slow to begin ("The Tail at Scale", Dean and Barroso,
2013): whichever begins first is the answer."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from simpleseg_server.engines.base import Delta, EngineError
from simpleseg_server.engines.upstreams import Upstream

MOST_AT_ONCE = 10.0
SHARE = 0.1
"""Of all requests, those that may be asked twice; beyond ``MOST_AT_ONCE``, so that an outage does
not double the load."""


class Try:
    """An answer of ``upstream`` that comes in by itself; what has come waits in a queue."""

    def __init__(self, upstream: Upstream, deltas: AsyncGenerator[Delta, None]) -> None:
        self.upstream = upstream
        self._arrived: asyncio.Queue[Delta | EngineError | None] = asyncio.Queue()
        self._begun = asyncio.Event()
        self._failed = False
        self._task = asyncio.create_task(self._pump(deltas))

    async def _pump(self, deltas: AsyncGenerator[Delta, None]) -> None:
        end: EngineError | None = None
        try:
            async with aclosing(deltas):
                async for delta in deltas:
                    self._arrived.put_nowait(delta)
                    self._begun.set()
        except EngineError as error:
            end, self._failed = error, not self._begun.is_set()
        finally:
            self._arrived.put_nowait(end)
            self._begun.set()

    @property
    def has_failed(self) -> bool:
        """Whether it ended before it had begun."""
        return self._failed

    @property
    def has_begun(self) -> bool:
        return self._begun.is_set() and not self._failed

    async def settles_within(self, seconds: float) -> bool:
        """Whether by then it has begun or failed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._begun.wait()
        return self._begun.is_set()

    async def settled(self) -> None:
        await self._begun.wait()

    async def close(self) -> None:
        """Hang up. Idempotent."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """The answer, from its first delta; closing it hangs up. Raises EngineError."""
        try:
            while (one := await self._arrived.get()) is not None:
                if isinstance(one, EngineError):
                    raise one
                yield one
        finally:
            await self.close()


async def first_to_begin(first: Try, second: Try) -> tuple[Try, Try]:
    """Both, the one to listen to before the other, which may have failed; the first one where
    neither is better."""
    waits = [asyncio.create_task(one.settled()) for one in (first, second)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if first.has_failed or second.has_failed:
            return (second, first) if first.has_failed else (first, second)
        return (first, second) if first.has_begun else (second, first)
    finally:
        for wait in waits:
            wait.cancel()
