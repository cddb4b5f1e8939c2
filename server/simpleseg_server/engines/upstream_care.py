"""Admits upstreams, watches them, and tries those that failed again until they answer."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from simpleseg_server.engines.base import EngineError
from simpleseg_server.engines.upstream_http import UpstreamUnfitError
from simpleseg_server.engines.upstreams import Upstream

logger = logging.getLogger("simpleseg_server")

Ask = Callable[[Upstream], Awaitable[None]]


class UpstreamCare:
    """One background task for each upstream.

    ``admit`` asks an upstream for real answers and ``check`` for its health, every ``interval_s``
    seconds; both raise EngineError. ``misses`` checks in a row that fail take an upstream out.
    """

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        admit: Ask,
        check: Ask,
        *,
        interval_s: float,
        misses: int,
    ) -> None:
        self._upstreams = upstreams
        self._admit = admit
        self._check = check
        self._interval_s = interval_s
        self._misses = misses
        self._verdicts: dict[Upstream, EngineError | None] = {}
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self, *, timeout_s: float, grace_s: float) -> None:
        """Return once an upstream is admitted and, for at most ``grace_s`` more, all were tried.

        Raises EngineError where all of them are unfit, or none was admitted within ``timeout_s``.
        """
        self._tasks = [asyncio.create_task(self._tend(one)) for one in self._upstreams]
        try:
            async with asyncio.timeout(timeout_s):
                await self._until(lambda: self._is_any_admitted() or self._are_all_unfit())
        except TimeoutError:
            pass
        if not self._is_any_admitted():
            reasons = "; ".join(str(error) for error in self._verdicts.values())
            raise EngineError(f"no upstream can be used: {reasons or 'none was tried in time'}")
        try:
            async with asyncio.timeout(grace_s):
                await self._until(lambda: len(self._verdicts) == len(self._upstreams))
        except TimeoutError:
            pass

    async def end(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._news.clear()
            await self._news.wait()

    def _is_any_admitted(self) -> bool:
        return any(upstream.is_available for upstream in self._upstreams)

    def _are_all_unfit(self) -> bool:
        """Whether waiting cannot help: each one answers, and refuses what it is asked."""
        verdicts = self._verdicts.values()
        return len(verdicts) == len(self._upstreams) and all(
            isinstance(verdict, UpstreamUnfitError) for verdict in verdicts
        )

    async def _tend(self, upstream: Upstream) -> None:
        while True:
            if upstream.is_available:
                await self._watch(upstream)
            else:
                await asyncio.sleep(upstream.breaker.wait_s)
                await self._try(upstream)

    async def _watch(self, upstream: Upstream) -> None:
        """Return once it is out, by its own answers or by these checks."""
        missed = 0
        while upstream.is_available:
            try:
                # Not wait_for: up to Python 3.11 it loses a cancellation that comes with the event.
                async with asyncio.timeout(self._interval_s):
                    await upstream.opened.wait()
            except TimeoutError:
                missed = 0 if await self._is_well(upstream) else missed + 1
            if missed >= self._misses:
                upstream.fail(decisive=True)
        logger.warning("upstream %s is left alone until it answers", upstream.address.url)

    async def _is_well(self, upstream: Upstream) -> bool:
        try:
            await self._check(upstream)
        except EngineError:
            return False
        except Exception:
            logger.exception("checking %s failed", upstream.address.url)
            return False
        return True

    async def _try(self, upstream: Upstream) -> None:
        upstream.opened.clear()
        upstream.breaker.begin_trial()
        verdict: EngineError | None = None
        try:
            await self._admit(upstream)
        except EngineError as error:
            verdict = error
        except Exception as error:
            logger.exception("trying %s failed", upstream.address.url)
            verdict = EngineError(f"{upstream.address.url}: {type(error).__name__}")
        if verdict is None:
            upstream.breaker.succeed()
            logger.info("upstream %s serves %s", upstream.address.url, upstream.model)
        else:
            upstream.breaker.fail()
            if str(verdict) != str(self._verdicts.get(upstream)):
                logger.warning("upstream is not used: %s", verdict)
        self._verdicts[upstream] = verdict
        self._news.set()
