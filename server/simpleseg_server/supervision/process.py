"""An engine in a process of its own: the server's end of the socket."""

import asyncio
import atexit
import itertools
import logging
import multiprocessing
import multiprocessing.util  # before our exit handler: its own waits for children, and runs later
import os
import socket
import sys
import weakref
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any

from prometheus_client import Metric

from simpleseg_server.engines.base import (
    Capabilities,
    Delta,
    Engine,
    EngineDeadError,
    EngineError,
    GenerationRequest,
)
from simpleseg_server.supervision import child, wire
from simpleseg_server.supervision.deaths import oom_kills, reason_of
from simpleseg_server.supervision.vitals import TICK_S, Patience, Vitals

_CLOSE_S = 5.0
_TOKENIZE_S = 5.0
_started: "weakref.WeakSet[BaseProcess]" = weakref.WeakSet()


def preload(module: str) -> None:
    """Begin to import a module, in a process of its own with a single thread, from which engines
    are forked: they start without importing. Call it before the first of them; returns at once.
    Idempotent."""
    multiprocessing.set_forkserver_preload([module])
    forkserver.ensure_running()


@atexit.register
def _kill_all() -> None:
    for process in _started:
        if process.is_alive():
            process.kill()


@contextmanager
def _without_main() -> Iterator[None]:
    """A process begun inside does not run the main module again, which costs it the imports of a
    whole server and gives it nothing: what makes an engine is in some other module."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class ProcessEngine:
    """An engine that dies alone; see the Engine protocol.

    ``make`` is pickled, and makes the engine in its process; it is not of the main module. Its
    death fails what it was asked with EngineDeadError; ``check_health`` raises it then, and once
    the process is stuck, which only ``close`` ends. Call it often: it is what looks.

    >>> engine = ProcessEngine(dict)  # starts nothing yet
    """

    def __init__(self, make: Callable[[], Engine], patience: Patience | None = None) -> None:
        self._make = make
        self._process: BaseProcess | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listening: asyncio.Task[None] | None = None
        self._capabilities: Capabilities | None = None
        self._started: asyncio.Future[Capabilities] | None = None
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Queue[Delta | EngineError]] = {}
        self._tokens: dict[int, asyncio.Future[Sequence[int]]] = {}
        self._metrics: Sequence[Metric] = ()
        self._death: EngineDeadError | None = None
        self._oom_kills = 0
        self._vitals = Vitals(self._pids, lambda: len(self._answers), patience or Patience())

    @property
    def capabilities(self) -> Capabilities:
        """Raises EngineError before the engine has started."""
        if self._capabilities is None:
            raise EngineError("the engine has not started")
        return self._capabilities

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def _pids(self) -> list[int]:
        return [] if self.pid is None else [self.pid]

    async def start(self) -> None:
        """Raises EngineDeadError where the process ended before it was ready, EngineError where it
        said why it cannot be."""
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.create_future()
        self._oom_kills = oom_kills()
        end = await asyncio.to_thread(self._launch)
        reader, self._writer = await asyncio.open_connection(sock=end, limit=wire.BUFFER_BYTES)
        self._listening = asyncio.create_task(self._listen(reader))
        try:
            self._capabilities = await self._settled(self._started)
        except BaseException:
            await self.close()
            raise
        self._vitals.beat()

    async def _settled(self, started: "asyncio.Future[Capabilities]") -> Capabilities:
        """While it loads there are no heartbeats, and it may wait for a disk or a network."""
        while not started.done():
            await asyncio.wait({started}, timeout=TICK_S)
            if self._vitals.check() == "stopped":
                raise EngineDeadError("the engine's process is stopped", "stopped")
        return started.result()

    def _launch(self) -> socket.socket:
        context = multiprocessing.get_context("forkserver")
        ours, theirs = context.Pipe()
        level = logging.getLogger("simpleseg_server").getEffectiveLevel()
        with ours, theirs:
            arguments = (theirs, self._make, level)
            self._process = context.Process(target=child.main, args=arguments, name="engine")
            with _without_main():
                self._process.start()
            _started.add(self._process)
            return socket.socket(fileno=os.dup(ours.fileno()))

    async def close(self) -> None:
        """End the process, at once where it is dead or stuck; running requests get
        EngineDeadError. Idempotent."""
        if self._process is None or self._listening is None:
            return
        is_well = self._death is None and self._capabilities is not None
        self._death = self._death or EngineDeadError("the engine has been closed", "killed")
        self._fail_all(self._death)
        if is_well and self._writer is not None and not self._writer.is_closing():
            wire.send(self._writer, wire.Close())
            await asyncio.wait({self._listening}, timeout=_CLOSE_S)
        self._process.kill()
        await asyncio.gather(self._listening, return_exceptions=True)

    def check_health(self) -> None:
        """Raise EngineDeadError where the process is gone, never was or is stuck."""
        if self._death is not None:
            raise self._death
        if self._capabilities is None:
            raise EngineDeadError("the engine has not started")
        verdict = self._vitals.check()
        if verdict is not None:
            self._death = EngineDeadError(f"the engine's process is stuck: {verdict}", verdict)
            raise self._death

    def collect(self) -> Iterable[Metric]:
        """The engine's metrics as they were at its last heartbeat."""
        return self._metrics

    def tokenize(self, text: str) -> list[int]:
        """For other threads than the event loop's, which it waits for. Raises EngineDeadError where
        the process cannot tell."""
        assert self._loop is not None
        asked = asyncio.run_coroutine_threadsafe(self._tokenize(text), self._loop)
        return list(asked.result())

    async def _tokenize(self, text: str) -> Sequence[int]:
        self.check_health()
        number = next(self._numbers)
        self._tokens[number] = told = asyncio.get_running_loop().create_future()
        self._send(wire.Tokenize(number, text))
        try:
            async with asyncio.timeout(_TOKENIZE_S):
                ids: Sequence[int] = await told
                return ids
        except TimeoutError:
            raise EngineDeadError("the engine's process does not tokenize") from None
        finally:
            del self._tokens[number]

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """Stream the answer; closing the iterator cancels it. Raises EngineError."""
        self.check_health()
        number = next(self._numbers)
        received: asyncio.Queue[Delta | EngineError] = asyncio.Queue()
        self._answers[number] = received
        is_over = False
        try:
            self._send(wire.Ask(number, request))
            while not is_over:
                item = await received.get()
                is_over = isinstance(item, EngineError) or item.finish_reason is not None
                if isinstance(item, EngineError):
                    raise item
                yield item
        finally:
            del self._answers[number]
            if not is_over:
                self._send(wire.Leave(number))

    def _send(self, message: object) -> None:
        if self._writer is not None and not self._writer.is_closing():
            wire.send(self._writer, message)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                self._take(await wire.receive(reader))
        except (asyncio.IncompleteReadError, OSError):
            await self._bury()

    def _take(self, message: Any) -> None:
        match message:
            case wire.Wrote(number, delta):
                self._vitals.progress()
                self._deliver(number, delta)
            case wire.Failed(number, error):
                self._deliver(number, error)
            case wire.Beat(metrics):
                self._vitals.beat()
                self._metrics = metrics
            case wire.Tokens(number, ids) if number in self._tokens:
                self._tokens[number].set_result(ids)
            case wire.Logged(record):
                logging.getLogger(record.name).handle(record)
            case wire.Started(capabilities):
                self._settle(capabilities)
            case wire.NotStarted(text):
                self._settle(EngineError(text))

    def _deliver(self, number: int, item: Delta | EngineError) -> None:
        if number in self._answers:  # else nobody waits for it any more
            self._answers[number].put_nowait(item)

    def _settle(self, outcome: Capabilities | EngineError) -> None:
        assert self._started is not None
        if self._started.done():
            return
        self._started.add_done_callback(lambda done: done.exception())  # seen, if nobody waits
        if isinstance(outcome, EngineError):
            self._started.set_exception(outcome)
        else:
            self._started.set_result(outcome)

    async def _bury(self) -> None:
        """The socket is closed: the process is gone, or about to be."""
        assert self._process is not None
        assert self._writer is not None
        self._writer.close()
        await asyncio.to_thread(self._process.join, _CLOSE_S)
        self._process.kill()
        code = self._process.exitcode
        if self._death is None:
            reason = reason_of(code, oom_kills() - self._oom_kills)
            message = f"the engine's process has ended with status {code}"
            self._death = EngineDeadError(message, reason)
        self._fail_all(self._death)

    def _fail_all(self, error: EngineDeadError) -> None:
        self._settle(error)
        for received in self._answers.values():
            received.put_nowait(error)
        for told in self._tokens.values():
            if not told.done():
                told.set_exception(error)
