"""Who may be in the engine at the same time: any number together, or a suspect alone."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from simpleseg_server.supervision.signal import Signal


class Quarantine:
    """Places in the engine. Who wants to be alone waits for the others to leave; those who come
    meanwhile wait for it."""

    def __init__(self) -> None:
        self._changed = Signal()
        self._together = 0
        self._want_alone = 0
        self._is_alone = False

    @asynccontextmanager
    async def place(self, *, alone: bool) -> AsyncIterator[None]:
        if alone:
            await self._enter_alone()
        else:
            await self._changed.until(lambda: not (self._is_alone or self._want_alone))
            self._together += 1
        try:
            yield
        finally:
            if alone:
                self._is_alone = False
            else:
                self._together -= 1
            self._changed.tell()

    async def _enter_alone(self) -> None:
        self._want_alone += 1
        try:
            await self._changed.until(lambda: not (self._is_alone or self._together))
            self._is_alone = True
        finally:
            self._want_alone -= 1
            self._changed.tell()
