"""From the thread that decodes to the event loop: what a step wrote for all requests, at once."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress

from simpleseg_server.engines.base import Delta, EngineError

Item = Delta | EngineError
Inbox = asyncio.Queue[Item]


class Outbox:
    """Fills the queues of event loops from one other thread, when that has the time.

    Waking a loop is a write to a socket, at which the writer loses the interpreter to the loop that
    it woke: too much for each request in every step.
    """

    def __init__(self) -> None:
        self._items: dict[asyncio.AbstractEventLoop, list[tuple[Inbox, Item]]] = {}

    def put(self, loop: asyncio.AbstractEventLoop, inbox: Inbox, item: Item) -> None:
        """Keep an item for a queue of that loop until ``send``."""
        self._items.setdefault(loop, []).append((inbox, item))

    def send(self) -> None:
        """Wake each loop that there is something for; in a closed one nobody waits."""
        for loop, items in self._items.items():
            with suppress(RuntimeError):  # it was closed
                loop.call_soon_threadsafe(_fill, items)
        self._items = {}


def _fill(items: Iterable[tuple[Inbox, Item]]) -> None:
    for inbox, item in items:
        inbox.put_nowait(item)
