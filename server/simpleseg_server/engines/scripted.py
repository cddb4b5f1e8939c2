"""An engine without a model, for tests: answers from a script, with delays and faults."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from itertools import count
from typing import Literal

from simpleseg_polygon.prompts import TARGETS
from simpleseg_server.engines.base import (
    Capabilities,
    Delta,
    DraftCount,
    EngineAwayError,
    EngineDeadError,
    EngineError,
    EngineOverloadedError,
    FinishReason,
    GenerationRequest,
    TokenLogprob,
    Usage,
)

Fault = Literal["error", "busy", "hang", "death"]

BUSY_S = 7.0
"""The wait that the fault 'busy' asks for."""


@dataclass(frozen=True)
class Reply:
    """One scripted answer.

    ``text`` is cut into tokens of ``token_length`` characters, each with ``logprob``, one delta for
    each, ``delay_s`` seconds before each. Faults come after ``fault_after`` tokens: ``fault``
    'error' raises EngineError, 'busy' EngineOverloadedError, 'hang' never goes on, 'death' kills
    the engine for good.
    """

    text: str
    token_length: int = 4
    logprob: float = -0.01
    delay_s: float = 0.0
    finish_reason: FinishReason = "stop"
    drafts: tuple[DraftCount, ...] = ()
    fault: Fault | None = None
    fault_after: int = 0


Script = Callable[[GenerationRequest], "Reply | str"]


class ScriptedEngine:
    """Answers in turn from a sequence (the last one again and again), or by calling a function.

    ``requests`` holds every request that came, ``cancelled`` the ids of those closed before their
    end, ``running`` how many are under way; ``is_away``, when set, lets it answer nothing for the
    moment. Like a real engine it serves ``max_concurrency`` at once and lets the others wait.

    >>> engine = ScriptedEngine(["[[[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]]]", Reply("[]")])
    """

    def __init__(
        self, replies: Sequence[Reply | str] | Script, *, capabilities: Capabilities | None = None
    ) -> None:
        self._script = replies if callable(replies) else _in_turn(replies)
        self._capabilities = capabilities or Capabilities(
            engine="scripted",
            model="scripted",
            targets=TARGETS,
            max_tokens=4096,
            max_concurrency=8,
            max_pixels=2048 * 2048,
        )
        self._slots = asyncio.Semaphore(self._capabilities.max_concurrency)
        self._dead = asyncio.Event()
        self._started = False
        self.requests: list[GenerationRequest] = []
        self.cancelled: list[str] = []
        self.running = 0
        self.is_away = False

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    async def start(self) -> None:
        self._started = True

    async def close(self) -> None:
        self._dead.set()

    def die(self) -> None:
        """Stop for good, as if the process behind the engine had gone."""
        self._dead.set()

    def check_health(self) -> None:
        if self._dead.is_set() or not self._started:
            raise EngineDeadError("the scripted engine is not running")
        if self.is_away:
            raise EngineAwayError("the scripted engine is away")

    def tokenize(self, text: str) -> list[int]:
        return list(text.encode())

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        self.check_health()
        self.requests.append(request)
        finished = False
        try:
            async with self._slots:
                self.running += 1
                try:
                    async with aclosing(self._deltas(self._reply(request))) as deltas:
                        async for delta in deltas:
                            finished = delta.finish_reason is not None
                            yield delta
                finally:
                    self.running -= 1
        except EngineError:
            finished = True
            raise
        finally:
            if not finished:
                self.cancelled.append(request.request_id)

    def _reply(self, request: GenerationRequest) -> Reply:
        reply = self._script(request)
        return Reply(reply) if isinstance(reply, str) else reply

    async def _deltas(self, reply: Reply) -> AsyncGenerator[Delta, None]:
        size = reply.token_length
        tokens = [reply.text[i : i + size] for i in range(0, len(reply.text), size)]
        for i, token in enumerate(tokens):
            await self._fault(reply, i)
            await self._pause(reply.delay_s)
            yield Delta(token, (TokenLogprob(token, reply.logprob),))
        await self._fault(reply, len(tokens))
        passes = max(0, len(tokens) - 1)
        decode_ms = reply.delay_s * len(tokens) * 1e3
        usage = Usage(16, len(tokens) + 1, passes, 0.0, 0.0, decode_ms, reply.drafts)
        yield Delta("", (), reply.finish_reason, usage)

    async def _fault(self, reply: Reply, tokens_sent: int) -> None:
        if reply.fault is None or tokens_sent != reply.fault_after:
            return
        if reply.fault == "error":
            raise EngineError("scripted error")
        if reply.fault == "busy":
            raise EngineOverloadedError("scripted overload", BUSY_S)
        if reply.fault == "death":
            self.die()
        await self._pause(None)

    async def _pause(self, seconds: float | None) -> None:
        """Sleep, for ever if None, unless the engine dies meanwhile."""
        if seconds == 0:
            await asyncio.sleep(0)
        else:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._dead.wait(), seconds)
        if self._dead.is_set():
            raise EngineDeadError("the scripted engine has died")


def _in_turn(replies: Sequence[Reply | str]) -> Script:
    turns = count()
    return lambda _: replies[min(next(turns), len(replies) - 1)]
