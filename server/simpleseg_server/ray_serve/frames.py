"""What an engine's replica sends to a front end, and how an answer goes on at a second replica."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace

from simpleseg_server.engines.base import (
    Delta,
    EngineAwayError,
    EngineDeadError,
    EngineError,
    EngineOverloadedError,
    PromptFault,
    PromptRefusedError,
)

GATHERED_S = 0.02
"""A message costs Ray about a millisecond of both processes, so that deltas travel together."""


@dataclass(frozen=True)
class Failure:
    """An EngineError as a value: a pickled exception loses what its constructor was given."""

    kind: str
    message: str
    code: PromptFault | None = None
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: EngineError) -> "Failure":
        code = error.code if isinstance(error, PromptRefusedError) else None
        wait = error.retry_after_s if isinstance(error, EngineOverloadedError) else None
        return cls(type(error).__name__, str(error), code, wait)

    def to_error(self) -> EngineError:
        """The error that it was made of; what it does not know is a plain EngineError."""
        if self.code is not None:
            return PromptRefusedError(self.message, self.code)
        if self.kind == EngineOverloadedError.__name__:
            return EngineOverloadedError(self.message, self.retry_after_s)
        known = {kind.__name__: kind for kind in (EngineDeadError, EngineAwayError)}
        return known.get(self.kind, EngineError)(self.message)


Frame = tuple[Delta, ...] | Failure


async def framed(deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[Frame, None]:
    """The first delta at once, then those of ``GATHERED_S`` together; an EngineError comes last.

    Closing the iterator closes ``deltas``.
    """
    arrived: asyncio.Queue[Delta | Failure | None] = asyncio.Queue()
    pump = asyncio.create_task(_pump(deltas, arrived))
    try:
        while (first := await arrived.get()) is not None:
            if isinstance(first, Failure):
                yield first
                return
            yield (first, *_waiting(arrived))
            await asyncio.wait({pump}, timeout=GATHERED_S)  # the end waits for nothing
    finally:
        pump.cancel()
        await asyncio.gather(pump, return_exceptions=True)


async def _pump(
    deltas: AsyncGenerator[Delta, None], arrived: "asyncio.Queue[Delta | Failure | None]"
) -> None:
    end: Failure | None = None
    try:
        async with aclosing(deltas):
            async for delta in deltas:
                arrived.put_nowait(delta)
    except EngineError as error:
        end = Failure.of(error)
    except Exception as error:
        end = Failure(EngineError.__name__, f"{type(error).__name__} in the engine")
    finally:
        arrived.put_nowait(end)


def _waiting(arrived: "asyncio.Queue[Delta | Failure | None]") -> list[Delta]:
    """The deltas that are there already; the end stays."""
    found: list[Delta] = []
    while not arrived.empty():
        delta = arrived.get_nowait()
        if not isinstance(delta, Delta):
            arrived.put_nowait(delta)  # nothing comes after it
            break
        found.append(delta)
    return found


class Delivered:
    """What of an answer has been handed on already: the same answer, asked for again because the
    first replica went away, goes on from there.

    >>> delivered = Delivered()
    >>> _ = delivered.rest(Delta("[[[0", ()))
    >>> delivered.begin_again(); delivered.rest(Delta("[[[0.1", ())).text
    '.1'
    """

    def __init__(self) -> None:
        self._text = ""
        self._tokens = 0
        self._text_at = self._tokens_at = 0

    def begin_again(self) -> None:
        """What follows is another answer to the same request."""
        self._text_at = self._tokens_at = 0

    def rest(self, delta: Delta) -> Delta:
        """What of ``delta`` is new. Raises EngineError where it is not what was handed on."""
        known = self._text[self._text_at :]
        overlap = min(len(known), len(delta.text))
        if known[:overlap] != delta.text[:overlap]:
            raise EngineError("another replica answers the same request otherwise")
        skipped = min(max(0, self._tokens - self._tokens_at), len(delta.tokens))
        self._text_at += len(delta.text)
        self._tokens_at += len(delta.tokens)
        new = delta.text[overlap:]
        self._text += new
        self._tokens = max(self._tokens, self._tokens_at)
        return replace(delta, text=new, tokens=delta.tokens[skipped:])


async def unframed(frames: AsyncIterator[Frame]) -> AsyncGenerator[Delta, None]:
    """The deltas of an answer. Raises the EngineError that ended it."""
    async for frame in frames:
        if isinstance(frame, Failure):
            raise frame.to_error()
        for delta in frame:
            yield delta
