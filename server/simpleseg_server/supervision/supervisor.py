"""An engine that is restarted when it dies or hangs, and asked again what it had not answered."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal, get_args

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from simpleseg_server.engines.base import (
    Capabilities,
    DeathReason,
    Delta,
    Engine,
    EngineAwayError,
    EngineDeadError,
    EngineError,
    GenerationRequest,
    MeasuredEngine,
    PromptRefusedError,
    TokenizingEngine,
)
from simpleseg_server.supervision.deaths import Deaths
from simpleseg_server.supervision.poison import Poison
from simpleseg_server.supervision.quarantine import Quarantine
from simpleseg_server.supervision.replay import Flight, ReplayDiffersError
from simpleseg_server.supervision.signal import Signal

State = Literal["starting", "ready", "waiting", "crash_loop"]
Replay = Literal["same", "differs", "poisoned", "given_up"]
MakeEngine = Callable[[int | None], Engine]

logger = logging.getLogger("simpleseg_server")
_POLL_S = 0.025
_START_S = 900.0
_CATCH_UP_S = 2.0
_BATCH_UNSAID = 8


@dataclass(eq=False)
class _Life:
    """An engine from its start to its death. ``answered`` counts what it finished."""

    engine: Engine
    ready_at: float
    alarm: asyncio.Event = field(default_factory=asyncio.Event)
    flights: set[Flight] = field(default_factory=set)
    answered: int = 0


class SupervisedEngine:
    """Engines that ``make`` makes, one after the other, as one; see the Engine protocol.

    ``make`` is given the largest batch, None for its own default, and starts nothing. With
    ``spare`` a second one is ready to take over. While none is ready ``check_health`` raises
    EngineAwayError, and what was asked waits, unless the engine is in a crash loop.

    A request that was in an engine when that died is asked again, and what was told of its answer
    is not told twice. Where the death may be its fault it runs alone, and at a second one it is
    refused, with the code ``request_poisoned``, then and when it is sent again. After the second
    death for want of memory, and each one from then on, the batch is halved.

    >>> engine = SupervisedEngine(lambda max_batch: None)  # starts nothing yet
    """

    def __init__(
        self, make: MakeEngine, *, max_batch: int | None = None, spare: bool = False
    ) -> None:
        self._make = make
        self._max_batch = max_batch
        self._spare = spare
        self._changed = Signal()
        self._quarantine = Quarantine()
        self._poison = Poison()
        self._deaths = Deaths()
        self._ready: list[_Life] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._capabilities: Capabilities | None = None
        self._refusal: EngineError | None = None
        self._is_closed = False
        self.replays: Counter[Replay] = Counter()

    @property
    def capabilities(self) -> Capabilities:
        """Those of the first engine. Raises EngineError before it has started."""
        if self._capabilities is None:
            raise EngineError("the engine has not started")
        return self._capabilities

    @property
    def engines(self) -> list[Engine]:
        """Those that are ready; the first one is asked, the other one is the spare."""
        return [life.engine for life in self._ready]

    @property
    def restarts(self) -> dict[DeathReason, int]:
        """Deaths by reason."""
        return dict(self._deaths.by_reason)

    @property
    def max_batch(self) -> int | None:
        return self._max_batch

    @property
    def state(self) -> State:
        if self._ready:
            return "ready"
        if self._deaths.is_loop:
            return "crash_loop"
        return "starting" if self._capabilities is None else "waiting"

    async def start(self) -> None:
        """Return once the first engine is ready; the spare follows. Raises EngineError where it
        says that it cannot start, or dies in a loop."""
        count = 2 if self._spare else 1
        self._tasks = [asyncio.create_task(self._tend(number)) for number in range(count)]
        await self._changed.until(lambda: bool(self._ready or self._refusal))
        if self._refusal is not None:
            await self.close()
            raise self._refusal

    async def close(self) -> None:
        """End all engines; running requests get EngineDeadError. Idempotent."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._changed.tell()

    def check_health(self) -> None:
        """Raise EngineAwayError where no engine is ready, EngineDeadError where none will be."""
        self._require_begun()
        if not self._ready:
            raise EngineAwayError(f"the engine is being restarted: {self.state}")

    def _require_begun(self) -> None:
        if self._is_closed or not self._tasks:
            raise EngineDeadError("the engine has not started, or is closed")

    def tokenize(self, text: str) -> list[int]:
        for engine in self.engines:
            if isinstance(engine, TokenizingEngine):
                return engine.tokenize(text)
        raise EngineAwayError("the engine is being restarted")

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """Stream the answer; closing the iterator cancels it. Raises EngineError."""
        self._require_begun()
        if request in self._poison:
            raise PromptRefusedError("it has ended the engine before", "request_poisoned")
        flight = Flight(request)
        while True:
            async with self._quarantine.place(alone=flight.is_suspect):
                life = await self._available()
                try:
                    async with aclosing(self._run(life, flight)) as deltas:
                        async for delta in deltas:
                            yield delta
                    return
                except ReplayDiffersError:
                    self.replays["differs"] += 1
                    raise
                except EngineAwayError:
                    raise
                except EngineDeadError as error:
                    life.alarm.set()
                    self._blame(flight, error)

    async def _run(self, life: _Life, flight: Flight) -> AsyncGenerator[Delta, None]:
        flight.begin_run()
        life.flights.add(flight)
        try:
            async with aclosing(life.engine.generate(flight.request)) as deltas:
                while True:
                    delta = await flight.next_of(deltas)
                    news = flight.news(delta)
                    if delta.finish_reason is not None:
                        life.answered += 1
                        self.replays["same"] += flight.deaths > 0
                    if news is not None:
                        yield news
                    if delta.finish_reason is not None:
                        return
        except StopAsyncIteration:
            raise EngineError("the engine ended the stream without a reason") from None
        finally:
            life.flights.discard(flight)

    def _blame(self, flight: Flight, error: EngineDeadError) -> None:
        if self._is_closed:
            raise error
        try:
            flight.blame(error.reason)
        except PromptRefusedError:
            self._poison.add(flight.request)
            self.replays["poisoned"] += 1
            logger.error("poisonous request_id=%s", flight.request.request_id)
            raise
        except EngineDeadError:
            self.replays["given_up"] += 1
            raise

    async def _available(self) -> _Life:
        """The engine to ask, once there is one."""
        while True:
            await self._changed.until(
                lambda: bool(self._ready) or self._is_closed or self._deaths.is_loop
            )
            if self._is_closed or not self._ready:
                raise EngineDeadError("the engine is closed, or dies again and again", "start")
            life = self._ready[0]
            try:
                life.engine.check_health()
            except EngineDeadError:  # a request may know before who watches
                self._ready.remove(life)
                life.alarm.set()
            else:
                return life

    async def _tend(self, number: int) -> None:
        """Keep one engine: start it, watch it, bury it, for ever."""
        if number > 0:  # the spare does not keep the first one waiting
            await self._changed.until(lambda: bool(self._ready))
        while True:
            error = await self._live()
            is_hopeless = self._deaths.is_loop or not isinstance(error, EngineDeadError)
            if self._capabilities is None and is_hopeless:
                self._refusal = error
                self._changed.tell()
                return
            # A new spare does not load while the old one catches up on what was lost.
            await asyncio.sleep(max(self._deaths.wait_s, _CATCH_UP_S if self._ready else 0.0))

    async def _live(self) -> EngineError:
        """One engine from its start to its end, and what that was."""
        engine = self._make(self._max_batch)
        life: _Life | None = None
        try:
            await _started(engine)
            life = self._offer(engine)
            error: EngineError = await self._death_of(life)
        except EngineError as refusal:
            error = refusal
        except Exception as bug:  # of the engine's; the server outlives it
            logger.exception("the engine failed in an unforeseen way")
            error = EngineDeadError(type(bug).__name__)
        finally:
            self._withdraw(life)
            await _closed(engine)
        self._count(error, life)
        return error

    def _offer(self, engine: Engine) -> _Life:
        life = _Life(engine, time.monotonic())
        self._capabilities = self._capabilities or engine.capabilities
        self._ready.append(life)
        self._changed.tell()
        return life

    async def _death_of(self, life: _Life) -> EngineDeadError:
        """Return when it is dead or stuck; its requests are told at once."""
        while True:
            try:
                life.engine.check_health()
                async with asyncio.timeout(_POLL_S):
                    await life.alarm.wait()
                life.alarm.clear()
            except TimeoutError:
                continue
            except EngineDeadError as error:
                for flight in tuple(life.flights):
                    flight.lose(error)
                return error

    def _withdraw(self, life: _Life | None) -> None:
        if life in self._ready:
            self._ready.remove(life)
        for flight in tuple(life.flights if life is not None else ()):
            flight.lose(EngineDeadError("the engine is closed", "killed"))

    def _count(self, failure: EngineError, life: _Life | None) -> None:
        error = _as_death(failure)
        if self._capabilities is None and error is not failure:
            return  # what it says of its first start is not a death
        lived_s = 0.0 if life is None else time.monotonic() - life.ready_at
        had_answered = life is not None and life.answered > 0
        self._deaths.add(error.reason, lived_s=lived_s, had_answered=had_answered)
        self._changed.tell()
        if error.reason == "memory" and self._deaths.by_reason["memory"] >= 2:
            self._max_batch = max(1, (self._max_batch or _BATCH_UNSAID) // 2)
        fields = {
            "event": "engine_died",
            "reason": error.reason,
            "lived_s": round(lived_s, 1),
            "wait_s": self._deaths.wait_s,
            "crash_loop": self._deaths.is_loop,
            "max_batch": self._max_batch,
        }
        words = " ".join(f"{name}={value}" for name, value in fields.items() if name != "event")
        logger.error("engine died %s", words, extra={"fields": {**fields, "message": str(error)}})

    def collect(self) -> Iterable[Metric]:
        """Restarts, replays and the state, and what the engine itself counts."""
        restarts = CounterMetricFamily(
            "simpleseg_engine_restarts", "Deaths of the engine, by reason.", labels=("reason",)
        )
        for reason in get_args(DeathReason):
            restarts.add_metric((reason,), self._deaths.by_reason[reason])
        replays = CounterMetricFamily(
            "simpleseg_engine_replays",
            "Requests asked again after a death, by how that ended.",
            labels=("outcome",),
        )
        for outcome in get_args(Replay):
            replays.add_metric((outcome,), self.replays[outcome])
        states = GaugeMetricFamily(
            "simpleseg_engine_state", "1 for the state that the engine is in.", labels=("state",)
        )
        for state in get_args(State):
            states.add_metric((state,), float(state == self.state))
        yield from (restarts, replays, states)
        for engine in self.engines[:1]:
            if isinstance(engine, MeasuredEngine):
                yield from engine.collect()


async def _started(engine: Engine) -> None:
    began = time.monotonic()
    try:
        async with asyncio.timeout(_START_S):
            await engine.start()
    except TimeoutError:
        raise EngineDeadError("the engine did not start in time", "start") from None
    logger.info("engine is ready seconds=%.2f", time.monotonic() - began)


async def _closed(engine: Engine) -> None:
    try:
        await engine.close()
    except Exception:  # it is given up anyway
        logger.exception("an engine that has ended could not be closed")


def _as_death(error: EngineError) -> EngineDeadError:
    """A start that failed, after others did not."""
    return error if isinstance(error, EngineDeadError) else EngineDeadError(str(error), "start")
