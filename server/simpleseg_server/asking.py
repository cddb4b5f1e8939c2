"""One prompt put to the engine: a place in the queue, the deadline, the answer."""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field

from simpleseg.schema import FinishReason
from simpleseg_server.admission import Admission, WaitedTooLongError
from simpleseg_server.answers import Answer
from simpleseg_server.engines.base import (
    Delta,
    Engine,
    EngineDeadError,
    EngineError,
    EngineOverloadedError,
    GenerationRequest,
    PromptRefusedError,
    TokenLogprob,
)
from simpleseg_server.engines.base import Usage as EngineUsage
from simpleseg_server.progress import Follower
from simpleseg_server.telemetry import logger


async def ask(
    engine: Engine,
    admission: Admission,
    generation: GenerationRequest,
    deadline: float,
    follower: Follower,
) -> Answer | EngineError:
    """The engine's answer, or what of it there is at the deadline (a time of the event loop).

    An engine's error is returned: other prompts of the same request may have better luck.
    """
    writing = _Writing(follower)
    try:
        async with asyncio.timeout_at(deadline) as limit:
            async with admission.slot() as writing.queue_ms:
                return await writing.collect(engine, generation)
    except TimeoutError:
        if limit.expired():
            return writing.unfinished()
        raise
    except WaitedTooLongError as error:
        return error
    except EngineDeadError as error:
        logger.error("engine is dead request_id=%s", generation.request_id)
        return error
    except EngineOverloadedError as error:
        logger.warning("engine is overloaded request_id=%s", generation.request_id)
        return error
    except PromptRefusedError as error:
        logger.info("prompt refused request_id=%s %s", generation.request_id, error.code)
        return error
    except EngineError as error:
        logger.exception("engine failed request_id=%s", generation.request_id)
        return error


@dataclass
class _Writing:
    """An answer while the engine writes it."""

    follower: Follower
    queue_ms: float = 0.0
    pieces: list[str] = field(default_factory=list)
    tokens: list[TokenLogprob] = field(default_factory=list)

    async def collect(self, engine: Engine, generation: GenerationRequest) -> Answer:
        """The whole answer. Closes the stream on every way out, which frees the engine's slot."""
        last: Delta | None = None
        async with aclosing(engine.generate(generation)) as deltas:
            async for last in deltas:
                self.pieces.append(last.text)
                self.tokens += last.tokens
                self.follower.read(last)
        if last is None or last.finish_reason is None or last.usage is None:
            raise EngineError("the stream ended without a finish reason and usage")
        return self._answer(last.finish_reason, last.usage)

    def unfinished(self) -> Answer:
        """What there is when the time is over; the engine has not told what it cost."""
        steps = max(0, len(self.pieces) - 1)
        return self._answer("deadline", EngineUsage(0, len(self.tokens), steps, 0.0, 0.0, 0.0))

    def _answer(self, reason: FinishReason, usage: EngineUsage) -> Answer:
        self.follower.finish()
        return Answer("".join(self.pieces), tuple(self.tokens), reason, usage, self.queue_ms)
