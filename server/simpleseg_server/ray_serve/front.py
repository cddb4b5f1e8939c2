"""What a front end takes for its engine: all replicas that hold one, through a Serve handle."""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from ray.exceptions import ObjectLostError, RayActorError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from simpleseg_server.engines.base import (
    Capabilities,
    Delta,
    EngineAwayError,
    EngineDeadError,
    EngineError,
    EngineOverloadedError,
    GenerationRequest,
)
from simpleseg_server.ray_serve.frames import Delivered, unframed

logger = logging.getLogger("simpleseg_server")

ATTEMPTS = 4
WATCH_INTERVAL_S = 2.0

IsAnyRunning = Callable[[], bool]


class ReplicatedEngine:
    """See the Engine protocol. ``handle`` is of the deployment of ``EngineReplica``.

    A request whose replica goes away, or says that its engine has stopped, is put to another one,
    and its answer goes on where it was: answers are the same for the same request, for which those
    that are sampled get a seed. ``at_once`` requests are let through; ``is_any_running`` is asked
    every two seconds, from a worker thread.
    """

    def __init__(self, handle: Any, at_once: int, is_any_running: IsAnyRunning) -> None:
        self._handle = handle
        self._at_once = at_once
        self._is_any_running = is_any_running
        self._capabilities: Capabilities | None = None
        self._is_away = self._is_closed = False
        self._watch: asyncio.Task[None] | None = None

    @property
    def capabilities(self) -> Capabilities:
        """Raises EngineError before the engine has started."""
        if self._capabilities is None:
            raise EngineError("the engine has not started")
        return self._capabilities

    async def start(self) -> None:
        """Wait for a replica that is ready. Raises EngineError where they cannot start."""
        if self._capabilities is not None:
            return
        try:
            one: Capabilities = await self._handle.capabilities.remote()
        except RayError as error:
            raise EngineError(f"no replica of the engine: {type(error).__name__}") from error
        self._capabilities = replace(one, max_concurrency=self._at_once)
        self._watch = asyncio.create_task(self._look())

    async def close(self) -> None:
        self._is_closed = True
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    def check_health(self) -> None:
        """Raise EngineDeadError where this is closed, EngineAwayError where no replica runs."""
        if self._is_closed or self._capabilities is None:
            raise EngineDeadError("the engine is not running")
        if self._is_away:
            raise EngineAwayError("no replica of the engine is running")

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """Stream the answer; closing the iterator cancels it at the replica. Raises EngineError."""
        self.check_health()
        asked, delivered = _repeatable(request), Delivered()
        for attempt in range(ATTEMPTS):
            delivered.begin_again()
            try:
                async with aclosing(self._answer(asked)) as deltas:
                    async for delta in deltas:
                        yield delivered.rest(delta)
                return
            except EngineDeadError as error:
                if self._is_closed or attempt == ATTEMPTS - 1:
                    raise
                logger.warning("a replica went away, the request goes to another one: %s", error)

    async def _answer(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """The answer of one replica. Raises EngineDeadError where another one might answer."""
        # The router's sessions are images: all requests on one go to the replica that cached it.
        handle = self._handle.options(stream=True, session_id=request.image_key)
        frames = handle.generate.remote(request)
        is_whole = False
        try:
            async with aclosing(unframed(frames)) as deltas:
                async for delta in deltas:
                    is_whole = delta.finish_reason is not None
                    yield delta
        except (BackPressureError, DeploymentUnavailableError) as error:
            raise EngineOverloadedError(type(error).__name__) from error
        except (RayActorError, ObjectLostError) as error:
            raise EngineDeadError(type(error).__name__) from error
        except RayError as error:
            raise EngineError(f"{type(error).__name__} in the replica") from error
        finally:
            if not is_whole:
                frames.cancel()
        if not is_whole:
            raise EngineDeadError("the replica ended before the answer did")

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            try:
                self._is_away = not await asyncio.to_thread(self._is_any_running)
            except Exception as error:  # the controller restarts by itself, and replicas go on
                logger.warning("the replicas cannot be counted: %s", type(error).__name__)


def _repeatable(request: GenerationRequest) -> GenerationRequest:
    """The same request, with an answer that is the same every time."""
    if request.temperature == 0 or request.seed is not None:
        return request
    return replace(request, seed=random.getrandbits(31))
