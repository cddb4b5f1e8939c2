"""Starts the engine while the server already answers its probes, and knows how the engine is."""

import asyncio
import time
from collections.abc import Callable

from simpleseg.schema import Health
from simpleseg_server.engines.base import Engine, EngineAwayError, EngineDeadError, MeasuredEngine
from simpleseg_server.errors import ApiError, draining, engine_unavailable
from simpleseg_server.telemetry import Metrics, logger

_WORDS = {
    "loading": "is loading",
    "unavailable": "cannot be reached for the moment",
    "dead": "has stopped",
}
STALLED_S = 1.0
"""An event loop that gives no sign of life for so long answers nobody: the server is not ready."""
STUCK_S = 30.0
"""After this time it is taken for dead."""
_BEAT_S = 0.1


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
        self._is_refusing = False
        self._last_beat: float | None = None
        self.over = asyncio.Event()
        """Set when the time is over that a stopping server gives the requests under way."""

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
        """Be ready no more, so that requests go elsewhere; those that come are still taken."""
        self._is_draining = True

    def refuse(self) -> None:
        """Take no more requests; those under way go on."""
        self._is_draining = self._is_refusing = True

    @property
    def is_refusing(self) -> bool:
        return self._is_refusing

    async def beat(self) -> None:
        """Show for ever that the event loop is alive, to probes that another thread answers."""
        while True:
            self._last_beat = time.monotonic()
            await asyncio.sleep(_BEAT_S)

    def _silent_s(self) -> float:
        return 0.0 if self._last_beat is None else time.monotonic() - self._last_beat

    def health(self) -> Health:
        """Whether the engine is loading, ready, away, draining or dead, and what it serves."""
        silent_s = self._silent_s()
        if silent_s > STALLED_S:
            return Health(status="dead" if silent_s > STUCK_S else "unavailable")
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
        """For requests. Raises ApiError 503 ``engine_unavailable`` unless the engine is ready, and
        ``draining`` where no more are taken."""
        if self._is_refusing:
            raise draining(self._retry_after_s)
        health = self._engine_health()
        if health.status != "ready":
            raise self._unavailable(health)
        return health

    def require_open(self) -> Health:
        """For probes: as ``require_ready``, and ``draining`` as soon as the server is to stop."""
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
        if health.status == "draining":
            return draining(self._retry_after_s)
        return engine_unavailable(self._retry_after_s, f"the engine {_WORDS[health.status]}")
