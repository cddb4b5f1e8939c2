"""What the server and an engine's process say to each other, over a socket that both inherit.

A message is a pickle behind its length. Both ends are this program, and no client's bytes are ever
unpickled: images and texts are data inside of it.
"""

import asyncio
import logging
import pickle
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import Metric

from simpleseg_server.engines.base import Capabilities, Delta, EngineError, GenerationRequest

BUFFER_BYTES = 16 * 2**20
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Ask:
    """To the engine: answer; ``number`` names the answer."""

    number: int
    request: GenerationRequest


@dataclass(frozen=True)
class Leave:
    """To the engine: nobody waits for the answer any more."""

    number: int


@dataclass(frozen=True)
class Tokenize:
    number: int
    text: str


@dataclass(frozen=True)
class Close:
    """To the engine: end."""


@dataclass(frozen=True)
class Started:
    capabilities: Capabilities


@dataclass(frozen=True)
class NotStarted:
    """The engine cannot start, and waiting would not help."""

    message: str


@dataclass(frozen=True)
class Beat:
    """A sign of life of the event loop, and what the engine counts."""

    metrics: Sequence[Metric]


@dataclass(frozen=True)
class Wrote:
    number: int
    delta: Delta


@dataclass(frozen=True)
class Failed:
    number: int
    error: EngineError


@dataclass(frozen=True)
class Tokens:
    number: int
    ids: Sequence[int]


@dataclass(frozen=True)
class Logged:
    record: logging.LogRecord


def send(writer: asyncio.StreamWriter, message: Any) -> None:
    body = pickle.dumps(message, protocol=5)
    writer.writelines((_LENGTH.pack(len(body)), body))


async def receive(reader: asyncio.StreamReader) -> Any:
    """The next message. Raises asyncio.IncompleteReadError or OSError where nobody is there."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return pickle.loads(await reader.readexactly(length))
