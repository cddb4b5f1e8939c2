"""The main server's end: whatever a client has sent before it is gone is answered.

Readiness goes first, and requests are still taken for a moment, since whoever sends them does not
know yet. Then new ones are answered 503, on connections that close behind the answer, until those
under way are done. The listener is closed last, when nobody waits in its queue any more: the kernel
resets those who do.
"""

import asyncio
import ctypes
import gc
import os
import select
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import uvicorn

from simpleseg_server.children import kill_children
from simpleseg_server.connections import CarefulConfig, CarefulProtocol
from simpleseg_server.middleware import DRAINED
from simpleseg_server.services import Services
from simpleseg_server.telemetry import logger

BACKLOG = 2048
"""Connections that may wait to be accepted. The event loop is told of fewer: it accepts as many
at a time, and everything else waits."""
_POLL_S = 0.01
_HANDSHAKE_S = 0.25
"""Time for connections that are being made when new ones are no longer let in."""
_QUIET_S = 0.25
"""A connection on which nothing has happened for so long is closed; a client that sends its next
request just then sees it closed, as with any server that closes an idle connection."""
_LAST_WORDS_S = 1.0
"""Time for streams to say that they end unfinished."""
_END_S = 5.0
"""Time for what remains when that of requests is over: answering them so, stopping the engine."""

_ATTACH_FILTER = 26  # SO_ATTACH_FILTER, which Python's socket module does not name
_LOAD_FLAGS = struct.pack("HBBI", 0x30, 0, 0, 13)  # the byte of a TCP header that has them
_IS_SYN = struct.pack("HBBI", 0x45, 0, 1, 0x02)
_DROP = struct.pack("HBBI", 0x06, 0, 0, 0)
_KEEP = struct.pack("HBBI", 0x06, 0, 0, 0xFFFFFFFF)


class MainServer(uvicorn.Server):
    """Serves until SIGTERM or SIGINT, and exits with 0 after it; a second one ends it at once."""

    config: CarefulConfig

    def __init__(self, config: CarefulConfig, services: Services) -> None:
        super().__init__(config)
        self._services = services
        self._settings = services.settings

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Not uvicorn's, which raises the signal again at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = dict.fromkeys((signal.SIGINT, signal.SIGTERM), self.handle_exit)
        handlers[signal.SIGHUP] = signal.SIG_IGN  # type: ignore[assignment]
        before = {sig: signal.signal(sig, handler) for sig, handler in handlers.items()}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for one in sockets or []:
            one.listen(BACKLOG)
        self._freezing = asyncio.create_task(self._freeze())

    async def _freeze(self) -> None:
        """Let collections of garbage leave out what loading has made: each full one would look
        through it and find next to none, 80 ms or more in which nobody is answered."""
        await self._services.keeper.settled()
        gc.freeze()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            _exit_at_once(128 + sig)
        self.should_exit = True
        self.config.is_draining = True  # uvicorn looks for its end every tenth of a second
        self._services.keeper.drain()
        # Unhandled, the alarm ends the process, whatever of it hangs.
        signal.setitimer(signal.ITIMER_REAL, self._settings.shutdown_timeout_s + 3 * _END_S)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop, keeper = asyncio.get_running_loop(), self._services.keeper
        deadline = loop.time() + self._settings.shutdown_timeout_s
        logger.info("draining")
        keeper.drain()
        self.config.is_draining = True
        for connection in self._connections():
            connection.shutdown()
        await asyncio.sleep(self._settings.drain_s)
        keeper.refuse()
        await self._finished(deadline)
        await self._close_listeners(sockets or [])
        await self._until(self._are_connections_gone, deadline)
        await self._cancel_rest()
        await self.lifespan.shutdown()
        logger.info("stopped")

    def _connections(self) -> list[CarefulProtocol]:
        return [one for one in self.server_state.connections if isinstance(one, CarefulProtocol)]

    async def _finished(self, deadline: float) -> None:
        """Wait for the requests that are under way now; later ones are refused at once."""
        loop = asyncio.get_running_loop()
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=max(0.0, deadline - loop.time()))

    async def _close_listeners(self, sockets: list[socket.socket]) -> None:
        loop = asyncio.get_running_loop()
        for one in sockets:
            let_nobody_in(one)
        await asyncio.sleep(_HANDSHAKE_S)  # the event loop accepts those who wait
        await self._until(lambda: not any(map(has_waiting, sockets)), loop.time() + _END_S)
        for server in self.servers:
            server.close()
        for one in sockets:
            one.close()

    def _are_connections_gone(self) -> bool:
        for connection in self._connections():
            connection.leave_if_quiet(_QUIET_S)
        return not self.server_state.connections and not self.server_state.tasks

    async def _until(self, is_so: Callable[[], bool], deadline: float) -> None:
        loop = asyncio.get_running_loop()
        while not is_so() and loop.time() < deadline:
            await asyncio.sleep(_POLL_S)

    async def _cancel_rest(self) -> None:
        tasks = list(self.server_state.tasks)
        if tasks:
            logger.error("%d requests were not answered in time", len(tasks))
            self._services.keeper.over.set()
            await asyncio.wait(tasks, timeout=_LAST_WORDS_S)
            for task in tasks:
                task.cancel(DRAINED)
            await asyncio.wait(tasks, timeout=_END_S)
            await self._until(self._are_connections_gone, asyncio.get_running_loop().time() + 1)


def let_nobody_in(listener: socket.socket) -> None:
    """Drop the packets that begin a connection to a listener; those in its queue stay, and whoever
    tries is refused when it is closed. Does nothing where the kernel has no such filter."""
    program = _LOAD_FLAGS + _IS_SYN + _DROP + _KEEP
    held = ctypes.create_string_buffer(program)
    described = struct.pack("HL", 4, ctypes.addressof(held))
    if sys.platform == "linux":
        with suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, described)


def has_waiting(listener: socket.socket) -> bool:
    """Whether a connection waits to be accepted."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))


def _exit_at_once(status: int) -> None:
    kill_children()
    os._exit(status)
