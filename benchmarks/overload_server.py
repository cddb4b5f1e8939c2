"""A server whose engine takes a fixed time and no CPU, as a fork of this process.

What it can do is set by sleeping, so that server and generator may share a small machine; each has
a core of its own where there are two.
"""

import asyncio
import multiprocessing
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx2

from simpleseg_server.app import create_app
from simpleseg_server.engines.base import GenerationRequest
from simpleseg_server.engines.scripted import Reply, ScriptedEngine
from simpleseg_server.serving import run
from simpleseg_server.sources import load

SERVICE_S = 0.02
ENDLESS = "endless"
"""A phrase that the engine never finishes to answer."""


@dataclass(frozen=True)
class Server:
    """A server that runs, and its ports."""

    process: BaseProcess
    port: int
    ops_port: int

    def probe(self, path: str) -> int | None:
        try:
            return httpx2.get(f"http://127.0.0.1:{self.ops_port}{path}", timeout=10).status_code
        except httpx2.TransportError:
            return None

    def gauge(self, name: str) -> float:
        text = httpx2.get(f"http://127.0.0.1:{self.ops_port}/metrics", timeout=10).text
        (value,) = re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)
        return float(value)


def cores() -> tuple[set[int], set[int]]:
    """The core of the server and those of the generator."""
    first, *others = sorted(os.sched_getaffinity(0))
    return {first}, set(others) or {first}


@contextmanager
def serving(log: Path, **settings: Any) -> Iterator[Server]:
    """A server that is ready; it is killed at the end if it still runs."""
    port, ops_port = free_port(), free_port()
    given = {"port": str(port), "ops_port": str(ops_port), "playground": "false"}
    given |= {name: str(value) for name, value in settings.items()}
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(log, given))
    process.start()
    server = Server(process, port, ops_port)
    try:
        while server.probe("/readyz") != 200:
            assert process.is_alive(), log.read_text()
            time.sleep(0.01)
        yield server
    finally:
        if process.is_alive():
            process.kill()
        process.join()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _serve(log: Path, given: dict[str, str]) -> None:
    os.sched_setaffinity(0, cores()[0])
    with log.open("a") as stream:
        os.dup2(stream.fileno(), 2)
    asyncio.set_event_loop_policy(None)
    engine = ScriptedEngine(_reply)
    settings = load({}, None, given).settings
    run(settings, lambda stop: create_app(settings, engine, on_engine_failure=stop), _nothing)
    sys.exit(0)


def _reply(request: GenerationRequest) -> Reply:
    if ENDLESS in request.instruction:
        return Reply("[]", fault="hang")
    return Reply("[]", delay_s=SERVICE_S)


def _nothing() -> None:
    pass
