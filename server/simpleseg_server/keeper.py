"""Starts the engine while the server already answers its probes, and knows how the engine is."""

import asyncio
from collections.abc import Callable

from simpleseg.schema import Health
from simpleseg_server.engines.base import Engine, EngineAwayError, EngineDeadError, MeasuredEngine
from simpleseg_server.errors import ApiError, engine_unavailable
from simpleseg_server.telemetry import Metrics, logger

_WORDS = {
    "loading": "is loading",
    "unavailable": "cannot be reached for the moment",
    "dead": "has stopped",
    "draining": "is about to stop",
}


class EngineKeeper:
    """Owns the start and the end of one engine.

    ``on_failure`` is called on the event loop where the engine cannot start: the server should
    exit.
    """

    def __init__(
        self, engine: Engine, metrics: Metrics, retry_after_s: float, on_failure: Callable[[], None]
    ) -> None:
        self.engine = engine
        self._metrics = metrics
        self._retry_after_s = retry_after_s
        self._on_failure = on_failure
        self._task: asyncio.Task[None] | None = None
        self._is_started = False
        self._has_failed = False
        self._is_draining = False

    def open(self) -> None:
        """Begin to start the engine; returns at once."""
        self._task = asyncio.create_task(self._start())

    async def settled(self) -> None:
        """Wait until the engine has started or failed to."""
        if self._task is not None:
            await self._task

    async def close(self) -> None:
        """Stop the engine, also one that is still starting."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._is_started = False
        await self.engine.close()

    async def _start(self) -> None:
        try:
            await self.engine.start()
        except Exception:
            self._has_failed = True
            logger.exception("the engine cannot start", extra={"with_text": True})
            self._on_failure()
            return
        capabilities = self.engine.capabilities
        self._metrics.describe(model=capabilities.model, engine=capabilities.engine)
        if isinstance(self.engine, MeasuredEngine):
            self._metrics.show(self.engine)
        self._is_started = True
        logger.info("ready model=%s engine=%s", capabilities.model, capabilities.engine)

    def drain(self) -> None:
        """Take no more requests; those under way go on."""
        self._is_draining = True

    def health(self) -> Health:
        """Whether the engine is loading, ready, away, draining or dead, and what it serves."""
        health = self._engine_health()
        is_over = self._is_draining and health.status != "dead"
        return Health(status="draining") if is_over else health

    def _engine_health(self) -> Health:
        if not self._is_started:
            return Health(status="dead" if self._has_failed else "loading")
        try:
            self.engine.check_health()
        except EngineAwayError:
            return Health(status="unavailable")
        except EngineDeadError:
            return Health(status="dead")
        capabilities = self.engine.capabilities
        return Health(status="ready", model=capabilities.model, engine=capabilities.engine)

    def require_ready(self) -> Health:
        """Raises ApiError 503 ``engine_unavailable`` unless the engine is ready."""
        health = self.health()
        if health.status != "ready":
            raise self._unavailable(health)
        return health

    def require_alive(self) -> Health:
        """Raises ApiError 503 ``engine_unavailable`` where only a restart helps."""
        health = self.health()
        if health.status == "dead":
            raise self._unavailable(health)
        return health

    def _unavailable(self, health: Health) -> ApiError:
        message = f"the engine {_WORDS[health.status]}"
        if health.status == "draining":
            return ApiError(503, "draining", message, retry_after_s=self._retry_after_s)
        return engine_unavailable(self._retry_after_s, message)
