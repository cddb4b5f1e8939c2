"""Work that tells of itself while it runs, as an iterator."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

E = TypeVar("E")


async def told_by(run: Callable[[Callable[[E], None]], Awaitable[None]]) -> AsyncGenerator[E, None]:
    """What ``run`` tells while it runs.

    Raises what it raises, after all that it told; closing the iterator cancels it.
    """
    told: asyncio.Queue[E | None] = asyncio.Queue()
    running = asyncio.ensure_future(run(told.put_nowait))
    running.add_done_callback(lambda _: told.put_nowait(None))
    try:
        while (event := await told.get()) is not None:
            yield event
        running.result()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
