"""A replica that holds an engine; a class of its own, so that nothing in it needs Ray."""

import contextlib
from collections.abc import AsyncGenerator, Callable

from simpleseg_server.config import Settings
from simpleseg_server.engines.base import Capabilities, Engine, EngineAwayError, GenerationRequest
from simpleseg_server.ray_serve.frames import Frame, framed

EngineFactory = Callable[[Settings], Engine]


class EngineReplica:
    """Loads an engine when Serve asks, and streams its answers.

    Serve routes no request here before ``ready`` has returned, replaces the replica where
    ``check_health`` raises, and lets answers under way end before it stops one.
    """

    def __init__(self, settings: Settings, make: EngineFactory) -> None:
        self._engine = make(settings)

    async def ready(self) -> None:
        """Raises EngineError where the engine cannot start."""
        await self._engine.start()

    def capabilities(self) -> Capabilities:
        return self._engine.capabilities

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Frame, None]:
        """The answer; an EngineError is its last frame."""
        async with contextlib.aclosing(framed(self._engine.generate(request))) as frames:
            async for frame in frames:
                yield frame

    def check_health(self) -> None:
        """Raises EngineDeadError where only a restart helps."""
        with contextlib.suppress(EngineAwayError):
            self._engine.check_health()

    async def close(self) -> None:
        await self._engine.close()
