"""The same answers from several processes, each with a model or a client of its own."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from pathlib import Path
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
    entries = {entry.custom_id: entry for entry in missing(source, journal)}
    items = [{**asdict(entry), "path": str(entry.path or "")} for entry in entries.values()]
    for item, answer in spread(items, lambda: _work(connect), workers=workers):
        if halt.reason is not None:
            return
        if isinstance(answer, Died):
            answer = died(entries[item["custom_id"]])
        if "halt" in answer:
            halt.because(answer["halt"])
            return
        journal.append(answer)
        advance()


def _work(connect: Connect) -> Work:
    """Entries answered together, by a client that stays as long as the process."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    client = asyncio.run_coroutine_threadsafe(connect().__aenter__(), loop).result()

    async def all_of(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return await asyncio.gather(*(_answer(client, item) for item in items))

    return lambda items: asyncio.run_coroutine_threadsafe(all_of(items), loop).result()


async def _answer(client: AsyncSimpleSeg, item: dict[str, Any]) -> dict[str, Any]:
    """The line to record, or why there is none."""
    halt = Halt()
    path = Path(item["path"]) if item["path"] else None
    line = await Asker(client, halt).answer(Entry(**{**item, "path": path}))
    return {"halt": halt.reason} if line is None else line
