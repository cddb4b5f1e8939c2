"""The same answers from several processes, each with a model or a client of its own."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from simpleseg.async_client import AsyncSimpleSeg
from simpleseg.batch.journal import Journal
from simpleseg.batch.run import Asker, Halt, died, missing
from simpleseg.batch.source import Entry, Source
from simpleseg.spread import Died, Work, spread

Connect = Callable[[], AbstractAsyncContextManager[AsyncSimpleSeg]]


def fill(
    source: Source,
    journal: Journal,
    connect: Connect,
    halt: Halt,
    advance: Callable[[], None],
    workers: int,
) -> None:
    """Answer what ``journal`` lacks, which this process alone writes: each answer once, whatever
    becomes of workers. Raises WorkerError, and OSError where an answer cannot be written."""
    entries = list(missing(source, journal))
    for entry, answer in spread(entries, lambda: _work(connect), workers=workers):
        if isinstance(answer, Halt):
            halt.because(answer.reason or "stopped")
            return
        journal.append(died(entry) if isinstance(answer, Died) else answer)
        advance()


def _work(connect: Connect) -> Work:
    """Entries answered together, by a client that stays as long as the process."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    connected = connect()
    client = asyncio.run_coroutine_threadsafe(connected.__aenter__(), loop).result()

    async def all_of(entries: Sequence[Entry]) -> list[dict[str, Any] | Halt]:
        return await asyncio.gather(*(_answer(client, entry) for entry in entries))

    def work(entries: Sequence[Entry]) -> list[dict[str, Any] | Halt]:
        assert connected is not None  # kept: collected as garbage, it would close the client
        return asyncio.run_coroutine_threadsafe(all_of(entries), loop).result()

    return work


async def _answer(client: AsyncSimpleSeg, entry: Entry) -> dict[str, Any] | Halt:
    """The line to record, or why there is none."""
    halt = Halt()
    return await Asker(client, halt).answer(entry) or halt
