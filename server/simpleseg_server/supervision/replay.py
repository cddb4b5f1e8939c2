"""One request over several runs: what was told of its answer, and how its runs ended."""

import asyncio
import secrets
from collections.abc import AsyncGenerator
from dataclasses import replace

from simpleseg_server.engines.base import (
    DeathReason,
    Delta,
    EngineDeadError,
    GenerationRequest,
    PromptRefusedError,
)

MOST_RUNS = 4
"""Of one request, where none of the deaths can be its fault."""

_NOBODYS_FAULT: frozenset[DeathReason] = frozenset({"killed", "stopped"})
_SEEDS = 2**31


class ReplayDiffersError(EngineDeadError):
    """The second run wrote another text than what the first had already told."""


class Flight:
    """A request under way. ``is_suspect``: it was in the engine when that ended by itself, so that
    it runs alone from then on.

    A sampled request without a seed gets one, so that every run draws alike.
    """

    def __init__(self, request: GenerationRequest) -> None:
        if request.temperature > 0 and request.seed is None:
            request = replace(request, seed=secrets.randbelow(_SEEDS))
        self.request = request
        self.is_suspect = False
        self.deaths = 0
        self._told = ""
        self._told_tokens: list[str] = []
        self._at = 0
        self._tokens_at = 0
        self._lost: EngineDeadError | None = None
        self._scope: asyncio.Timeout | None = None

    def begin_run(self) -> None:
        self._at = self._tokens_at = 0
        self._lost = None

    def lose(self, error: EngineDeadError) -> None:
        """End the run: the engine will write nothing more."""
        if self._lost is None and self._scope is not None:
            self._scope.reschedule(0)
        self._lost = self._lost or error

    async def next_of(self, deltas: AsyncGenerator[Delta, None]) -> Delta:
        """Raises StopAsyncIteration at the end, EngineDeadError once the run is lost."""
        if self._lost is None:
            try:
                # Around the engine alone: who is told is in the same task, and is not to be ended.
                async with asyncio.timeout(None) as self._scope:
                    return await anext(deltas)
            except TimeoutError:
                if self._lost is None:
                    raise
            finally:
                self._scope = None
        raise self._lost

    def news(self, delta: Delta) -> Delta | None:
        """What of the run's next piece was not told yet. Raises ReplayDiffersError."""
        text = self._new_text(delta.text)
        count = len(self._told_tokens) - self._tokens_at
        known, new = delta.tokens[: max(0, count)], delta.tokens[max(0, count) :]
        told = self._told_tokens[self._tokens_at : self._tokens_at + len(known)]
        if [token.text for token in known] != told:
            raise ReplayDiffersError("another run wrote other tokens")
        self._tokens_at += len(delta.tokens)
        self._told_tokens += [token.text for token in new]
        is_last = delta.finish_reason is not None
        if is_last and (self._at, self._tokens_at) != (len(self._told), len(self._told_tokens)):
            raise ReplayDiffersError("another run ended earlier")
        return replace(delta, text=text, tokens=new) if text or new or is_last else None

    def _new_text(self, text: str) -> str:
        left = len(self._told) - self._at
        known, new = text[:left], text[left:]
        if self._told[self._at : self._at + len(known)] != known:
            raise ReplayDiffersError("another run wrote another text")
        self._at += len(text)
        self._told += new
        return new

    def blame(self, reason: DeathReason) -> None:
        """The engine ended in this run. Raises PromptRefusedError where the request is to blame,
        EngineDeadError where it was tried often enough."""
        self.deaths += 1
        if reason not in _NOBODYS_FAULT:
            if self.is_suspect:
                raise PromptRefusedError("the engine ended twice in it", "request_poisoned")
            self.is_suspect = True
        if self.deaths >= MOST_RUNS:
            raise EngineDeadError("the engine ended in every run of the request", reason)
