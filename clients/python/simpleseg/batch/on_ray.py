"""The same answers from several processes, each with a model or a client of its own."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

from simpleseg.async_client import AsyncSimpleSeg
from simpleseg.batch.journal import is_error
from simpleseg.batch.run import Halt, Run, died
from simpleseg.batch.source import Entry, Source
from simpleseg.shards import Block, Shards, cut
from simpleseg.spread import Work, WorkerError, spread

Connect = Callable[[], AbstractAsyncContextManager[AsyncSimpleSeg]]


class Spread:
    """A source's entries, ``size`` of them in a shard.

    Raises ForeignShardsError where there are shards of something else.
    """

    def __init__(self, source: Source, shards: Shards, size: int) -> None:
        self.shards = shards
        self._blocks = cut(list(source.entries()), _asked, size)
        self._left = {block.name: block for block in shards.missing(self._blocks)}
        self.total = len(source.digests)

    @property
    def answered(self) -> int:
        return self.total - sum(len(block.items) for block in self._left.values())

    def failed(self) -> int:
        """How many of the answers are errors, by reading them all."""
        return sum(is_error(line) for _, lines in self._done() for line in lines)

    def retry_errors(self) -> None:
        """Errors are to be asked again; the answers beside them are kept."""
        for block, lines in list(self._done()):
            kept = {line["custom_id"]: line for line in lines if not is_error(line)}
            failed = [entry for entry in block.items if entry.custom_id not in kept]
            if failed:
                self._left[block.name] = Block(block.name, failed, list(kept.values()))

    def _done(self) -> Iterator[tuple[Block[Entry], list[dict[str, Any]]]]:
        for block in self._blocks:
            if block.name not in self._left:
                yield block, self.shards.read(block.name)

    def fill(
        self, connect: Connect, concurrency: int, workers: int, advance: Callable[[], None]
    ) -> None:
        """Ask for what is left. Raises WorkerError where that ends early."""
        left = list(self._left.values())
        work = partial(_work, connect, concurrency)
        for block in spread(left, self.shards, work, died, workers=workers):
            del self._left[block.name]
            for _ in block.items:
                advance()


def _asked(entry: Entry) -> str:
    return f"{entry.custom_id} {entry.digest}"


def _work(connect: Connect, concurrency: int) -> Work:
    """Entries answered by a client that stays as long as the process."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    connected = connect()
    client = asyncio.run_coroutine_threadsafe(connected.__aenter__(), loop).result()

    def work(entries: Sequence[Entry]) -> list[dict[str, Any]]:
        assert connected is not None  # kept: collected as garbage, it would close the client
        lines, halt = list[dict[str, Any]](), Halt()
        run = Run(iter(entries), lines.append, client, halt)
        asyncio.run_coroutine_threadsafe(run.run(concurrency), loop).result()
        if halt.reason is not None:
            raise WorkerError(halt.reason)
        return lines

    return work
