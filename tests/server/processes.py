"""Servers in processes of their own."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx2

from ..faults import none_logged

SERVER = """
import sys
import time
from simpleseg_server.app import create_app
from simpleseg_server.engines.scripted import Reply, ScriptedEngine
from simpleseg_server.serving import run
from simpleseg_server.sources import load

TRIANGLE = "[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]]."
REPLIES = {
    "region": [
        Reply(TRIANGLE),
        Reply(TRIANGLE[:-2] + ", [[0.6, 0.6], [0.9, 0.6], [0.9, 0.9]]].", token_length=1),
        Reply(TRIANGLE, finish_reason="length"),
        Reply("[]"),
        Reply("[[[0.1, 0.1], [0.9, 0.9]], [[0.5, 0.5]]]."),
        Reply(TRIANGLE[:-9], finish_reason="length"),
        Reply("well"),
    ],
    "box": [Reply("[[0.1, 0.1, 0.5, 0.5]]."), Reply("[]."), Reply("[[0.1, 0.1")],
    "point": [Reply("[[0.25, 0.75]]."), Reply("[]."), Reply("?")],
    "text": [Reply("a thing"), Reply("")],
}
PHRASES = {
    "slow": Reply("[]", delay_s=2.0),
    "short": Reply("[]", delay_s=0.02),
    "endless": Reply("[]", fault="hang"),
    "unfinished": Reply(f"{TRIANGLE[:-2]}, [[0.6, 0.6", fault="hang", fault_after=11),
    "huge": Reply("x" * 8_000_000, token_length=8_000_000),
}


def reply(request):
    for word, reply in PHRASES.items():
        if word in request.instruction:
            return reply
    if "stuck" in request.instruction:
        time.sleep(3)  # and with it the event loop
    choices = REPLIES[request.target]
    return choices[len(request.instruction) % len(choices)]


settings = load({}, None, dict(item.split("=", 1) for item in sys.argv[1:])).settings
engine = ScriptedEngine(reply)
run(settings, lambda stop: create_app(settings, engine, on_engine_failure=stop), lambda: None)
"""


NOTHING: Mapping[str, str] = MappingProxyType({})
Running = AbstractContextManager[tuple[Any, list[str]]]


def scripted_server(log: Path, **settings: str) -> Running:
    """A server whose answers are written down here: those to what is "slow" take seconds, those to
    what is "short" 20 ms."""
    arguments = [f"{name}={value}" for name, value in {"port": "0", **settings}.items()]
    return running(log, ["-c", SERVER, *arguments], 1 + ("ops_port" in settings))


def demo_server(log: Path, **settings: str) -> Running:
    """``simpleseg serve`` with the shipped model."""
    command = ["-m", "simpleseg.cli", "serve", "--port", "0", "--engine", "embedded"]
    variables = {f"SIMPLESEG_{name.upper()}": value for name, value in settings.items()}
    return running(log, command, 1 + ("ops_port" in settings), variables)


@contextmanager
def running(
    log: Path, arguments: list[str], listeners: int, variables: Mapping[str, str] = NOTHING
) -> Iterator[tuple[Any, list[str]]]:
    """The process and the addresses that it says it listens on, the main one first."""
    with log.open("a") as stream:
        environ = {**os.environ, **variables}
        process = subprocess.Popen([sys.executable, *arguments], stderr=stream, env=environ)
    try:
        wait_for(lambda: len(_addresses(log)) == listeners or process.poll() is not None)
        wait_for(lambda: all(status_of(f"{url}/readyz") == 200 for url in _addresses(log)))
        yield process, _addresses(log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(20)
    none_logged(log)


def _addresses(log: Path) -> list[str]:
    return re.findall(r"listening (?:for operations )?on (http://[\d.:]+)", log.read_text())


def status_of(url: str, **options: Any) -> int | None:
    try:
        return httpx2.get(url, timeout=20, **options).status_code
    except httpx2.TransportError:
        return None


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240  # a busy machine takes a minute to import torch
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
