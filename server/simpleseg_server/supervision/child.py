"""An engine's process: runs an engine, and answers what comes over the socket.

It ends with the server, however that goes. Signals that a terminal or a service manager sends to
all processes at once are left to the server, which finishes what is under way before it ends this
one.
"""

import asyncio
import copy
import gc
import logging
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from contextlib import aclosing
from multiprocessing.connection import Connection
from typing import NoReturn

from simpleseg_server.engines.base import (
    Engine,
    EngineDeadError,
    EngineError,
    MeasuredEngine,
    PromptRefusedError,
    TokenizingEngine,
)
from simpleseg_server.logs import error_fields
from simpleseg_server.supervision import wire
from simpleseg_server.supervision.deaths import EXIT_MEMORY
from simpleseg_server.supervision.parent import end_with

BEAT_S = 0.25
logger = logging.getLogger("simpleseg_server")
_EXIT_DEAD = 70
_DEADLY = frozenset({"AcceleratorError", "OutOfMemoryError"})
_NO_MEMORY = ("allocate memory", "not enough memory", "out of memory")


def main(connection: Connection, make: Callable[[], Engine], log_level: int) -> None:
    """Where the process begins; never returns."""
    gc.freeze()  # a collection would copy every page that is shared with the other processes
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    server = multiprocessing.parent_process()
    assert server is not None
    end_with(server)
    end = socket.socket(fileno=os.dup(connection.fileno()))
    connection.close()
    asyncio.run(_serve(end, make, log_level))
    os._exit(0)  # threads of the engine may still compute


async def _serve(end: socket.socket, make: Callable[[], Engine], log_level: int) -> None:
    reader, writer = await asyncio.open_connection(sock=end, limit=wire.BUFFER_BYTES)
    _log_to(writer, log_level)
    try:
        engine = make()
        await engine.start()
    except Exception as error:
        if _is_out_of_memory(error):
            os._exit(EXIT_MEMORY)
        wire.send(writer, wire.NotStarted(f"{type(error).__name__}: {error}"))
        await writer.drain()
        return
    gc.freeze()  # again: nor are answers to wait for a look through what loading has made
    wire.send(writer, wire.Started(engine.capabilities))
    await _Served(engine, reader, writer).run()


class _Served:
    """A started engine, asked over a socket."""

    def __init__(
        self, engine: Engine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._engine = engine
        self._reader = reader
        self._writer = writer
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Until the server says so, or is gone."""
        beating = asyncio.create_task(self._beat())
        try:
            while not isinstance(message := await wire.receive(self._reader), wire.Close):
                self._take(message)
        except (asyncio.IncompleteReadError, OSError):
            pass
        beating.cancel()

    def _take(self, message: wire.Ask | wire.Leave | wire.Tokenize) -> None:
        number = message.number
        if isinstance(message, wire.Leave):
            task = self._tasks.get(number)
            if task is not None:
                task.cancel()
            return
        work = self._answer(message) if isinstance(message, wire.Ask) else self._tokenize(message)
        self._tasks[number] = task = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._tasks.pop(number))

    async def _answer(self, ask: wire.Ask) -> None:
        try:
            async with aclosing(self._engine.generate(ask.request)) as deltas:
                async for delta in deltas:
                    self._send(wire.Wrote(ask.number, delta))
        except EngineError as error:
            _end_if_dead(error)
            if not isinstance(error, PromptRefusedError):  # frames do not travel with the error
                logger.warning(
                    "engine failed request_id=%s", ask.request.request_id, exc_info=error
                )
            self._send(wire.Failed(ask.number, error))
        except Exception as error:  # a bug of the engine's; the process goes on
            _end_if_dead(error)
            self._send(wire.Failed(ask.number, EngineError(f"{type(error).__name__}: {error}")))

    async def _tokenize(self, asked: wire.Tokenize) -> None:
        assert isinstance(self._engine, TokenizingEngine)
        ids = await asyncio.to_thread(self._engine.tokenize, asked.text)
        self._send(wire.Tokens(asked.number, ids))

    async def _beat(self) -> None:
        engine = self._engine
        while True:
            try:
                engine.check_health()
            except EngineDeadError as error:
                _end(error)
            measured = tuple(engine.collect()) if isinstance(engine, MeasuredEngine) else ()
            self._send(wire.Beat(measured))
            await asyncio.sleep(BEAT_S)

    def _send(self, message: object) -> None:
        wire.send(self._writer, message)


def _end_if_dead(error: Exception) -> None:
    """A request's error may be the engine's end: then nobody is told of a request that failed, and
    the server asks another engine."""
    deadly = any(type(one).__name__ in _DEADLY for one in _causes(error))
    if isinstance(error, EngineDeadError) or deadly or _is_out_of_memory(error):
        _end(error)


def _end(error: BaseException) -> NoReturn:
    os._exit(EXIT_MEMORY if _is_out_of_memory(error) else _EXIT_DEAD)


def _is_out_of_memory(error: BaseException) -> bool:
    return any(
        isinstance(one, MemoryError)
        or type(one).__name__ == "OutOfMemoryError"
        or (isinstance(one, RuntimeError) and any(word in str(one) for word in _NO_MEMORY))
        for one in _causes(error)
    )


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__
    return found


class _ToServer(logging.Handler):
    """The server writes all log lines, so that none is torn and all look alike."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        super().__init__()
        self._writer = writer
        self._loop = asyncio.get_running_loop()

    def emit(self, record: logging.LogRecord) -> None:
        sent = copy.copy(record)
        if sent.exc_info and sent.exc_info[1] is not None:
            said = error_fields(sent.exc_info[1], getattr(record, "with_text", False))
            fields = getattr(record, "fields", None) or {"message": record.getMessage()}
            vars(sent)["fields"] = {**fields, **said}
        sent.msg, sent.args, sent.exc_info = record.getMessage(), None, None
        self._loop.call_soon_threadsafe(wire.send, self._writer, wire.Logged(sent))


def _log_to(writer: asyncio.StreamWriter, level: int) -> None:
    logging.basicConfig(handlers=[_ToServer(writer)], level=logging.WARNING, force=True)
    for name in ("simpleseg_server", "simpleseg"):
        logging.getLogger(name).setLevel(level)
