"""Waiting for a condition that others change."""

import asyncio
from collections.abc import Callable


class Signal:
    """Wakes all who wait, each to look at its own condition; telling never blocks.

    >>> async def example() -> bool:
    ...     signal, seen = Signal(), []
    ...     waiting = asyncio.ensure_future(signal.until(lambda: bool(seen)))
    ...     await asyncio.sleep(0)
    ...     seen.append(1)
    ...     signal.tell()
    ...     await waiting
    ...     return waiting.done()
    >>> asyncio.run(example())
    True
    """

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def tell(self) -> None:
        for one in self._waiting:
            if not one.done():
                one.set_result(None)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            told = asyncio.get_running_loop().create_future()
            self._waiting.add(told)
            try:
                await told
            finally:
                self._waiting.discard(told)
