"""A load on a server: open (Poisson or at a constant rate) or closed, and what came of it.

In an open loop requests are due at times that do not depend on the server, and every time is
measured from the moment when the request was due: a server that stalls is charged with the wait of
all that were due meanwhile (no coordinated omission). In a closed loop each of N users asks again
when answered, and times are those that such a user sees.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from simpleseg.bench.checking import Checker
from simpleseg.bench.questions import Deck, Question
from simpleseg.bench.result import LoadResult, Sample
from simpleseg.bench.wire import AnswerError, Target, error_kind, reader_of

if TYPE_CHECKING:
    import aiohttp

Mode = Literal["closed", "poisson", "constant"]
Tell = Callable[[Sequence[Sample]], None]
"""Hears, from time to time, all that was measured so far."""

_TELL_EVERY_S = 0.25
_KEEP_ALIVE_S = 2.0  # less than servers wait, so that none closes a connection that is just used


@dataclass(frozen=True)
class Load:
    """How much, and for how long.

    ``level`` is the concurrency of a closed loop, else requests per second. The first ``warmup_s``
    seconds are not counted. ``requests``, where given, ends the measurement after that many in
    place of ``duration_s``. ``slo_ms`` is the latency that a good answer keeps to. ``reuse`` is the
    share of requests about an image asked about lately.
    """

    mode: Mode = "closed"
    level: float = 1
    duration_s: float = 30.0
    warmup_s: float = 5.0
    requests: int | None = None
    slo_ms: float | None = None
    reuse: float | None = None
    seed: int = 0
    max_connections: int = 1024

    def __post_init__(self) -> None:
        if self.level <= 0 or (self.mode == "closed" and self.level != int(self.level)):
            raise ValueError(f"{self.level} is no rate or concurrency")
        if self.requests is None and self.duration_s <= 0:
            raise ValueError("the duration must be above 0")

    def at(self, level: float) -> "Load":
        return replace(self, level=level)


def run_load(
    target: Target,
    questions: Sequence[Question],
    load: Load,
    *,
    checker: Checker | None = None,
    tell: Tell | None = None,
) -> LoadResult:
    """Put ``load`` on the server at ``target`` and wait until every request is answered.

    A ``checker`` that several loads share compares their answers too.

    Raises InvalidInputError for a question that the endpoint cannot be asked, ModuleNotFoundError
    without the extra ``bench``. Errors of the server are counted in the result.
    """
    return asyncio.run(run_load_async(target, questions, load, checker=checker, tell=tell))


async def run_load_async(
    target: Target,
    questions: Sequence[Question],
    load: Load,
    *,
    checker: Checker | None = None,
    tell: Tell | None = None,
) -> LoadResult:
    """The same, for a program that has a loop: it must have nothing else to do meanwhile."""
    import aiohttp

    connector = aiohttp.TCPConnector(
        limit=load.max_connections, keepalive_timeout=_KEEP_ALIVE_S, force_close=False
    )
    limits = aiohttp.ClientTimeout(total=target.timeout_s)
    async with aiohttp.ClientSession(
        connector=connector, timeout=limits, headers=target.headers
    ) as session:
        run = _Run(target, questions, load, checker or Checker(), session)
        telling = asyncio.create_task(run.tell_often(tell))
        try:
            return await run.measure()
        finally:
            telling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await telling


def arrivals(load: Load) -> Iterator[float]:
    """When the requests of an open loop are due, in seconds from the start, without end.

    >>> from itertools import islice
    >>> list(islice(arrivals(Load("constant", 4.0)), 3))
    [0.0, 0.25, 0.5]
    """
    random, due, number = Random(load.seed + 1), 0.0, 0
    while True:
        yield due
        number += 1
        poisson = load.mode == "poisson"
        due = due + random.expovariate(load.level) if poisson else number / load.level


class _Run:
    """One load under way."""

    def __init__(
        self,
        target: Target,
        questions: Sequence[Question],
        load: Load,
        checker: Checker,
        session: "aiohttp.ClientSession",
    ) -> None:
        self._target, self._load, self._checker, self._session = target, load, checker, session
        self._deck = Deck(questions, load.reuse, load.seed)
        # Made before the start, so that sending costs little.
        self._bodies = {id(question): target.body(question) for question in questions}
        self._greedy = {id(question): target.is_greedy(question) for question in questions}
        self._samples: list[Sample] = []
        self._sent = 0
        self._begin = 0.0
        self._cpu: tuple[float, float] | None = None

    async def measure(self) -> LoadResult:
        self._begin = time.perf_counter()
        started = time.time()
        compared, changed = self._checker.compared, self._checker.changed
        await (self._closed() if self._load.mode == "closed" else self._open())
        cpu_s, from_s = self._cpu_since()
        return LoadResult(
            target=self._target,
            load=self._load,
            started_unix=started,
            samples=tuple(self._samples),
            cpu_share=cpu_s / max(self._now() - from_s, 1e-9),
            cpu_s=cpu_s,
            reuse_share=self._deck.reuse_share,
            golden_compared=self._checker.compared - compared,
            golden_changed=self._checker.changed - changed,
            mean_truth_iou=self._checker.mean_truth_iou,
        )

    async def tell_often(self, tell: Tell | None) -> None:
        while tell is not None:
            await asyncio.sleep(_TELL_EVERY_S)
            tell(self._samples)

    def _now(self) -> float:
        return time.perf_counter() - self._begin

    def _counts(self, due_s: float) -> bool:
        """Is what is due then measured; CPU time is counted from the first that is."""
        if due_s < self._load.warmup_s:
            return False
        if self._cpu is None:
            self._cpu = time.process_time(), self._now()
        return True

    def _cpu_since(self) -> tuple[float, float]:
        cpu_s, from_s = self._cpu or (time.process_time(), self._now())
        return time.process_time() - cpu_s, from_s

    def _is_over(self, due_s: float) -> bool:
        if self._load.requests is not None:
            return self._sent >= self._load.requests
        return due_s >= self._load.warmup_s + self._load.duration_s

    async def _open(self) -> None:
        under_way: set[asyncio.Task[None]] = set()
        for due_s in arrivals(self._load):
            if self._is_over(due_s):
                break
            # Also where it is late already: the answers need their turn.
            await asyncio.sleep(max(0.0, due_s - self._now()))
            task = asyncio.create_task(self._one(due_s))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)

    async def _closed(self) -> None:
        async def user() -> None:
            while not self._is_over(due_s := self._now()):
                await self._one(due_s)

        users: list[Coroutine[Any, Any, None]] = [user() for _ in range(int(self._load.level))]
        await asyncio.gather(*users)

    async def _one(self, due_s: float) -> None:
        question = self._deck.draw()
        counts = self._counts(due_s)
        self._sent += counts
        sample = await self._ask(question, due_s)
        if counts:
            self._samples.append(sample)

    async def _ask(self, question: Question, due_s: float) -> Sample:
        reader, sent_s = reader_of(self._target), self._now()
        sample = Sample(due_s, sent_s, sent_s, len(question.prompts()))
        try:
            error = await self._exchange(self._bodies[id(question)], reader.feed)
            answer = None if error else reader.answer()
        except AnswerError as failure:
            error, answer = str(failure), None
        sample = replace(sample, done_s=self._now(), error=error)
        if answer is None:
            return sample
        marks, first_s = reader.marks, answer.server_first_token_s
        told_s = None if first_s is None else sent_s + first_s
        return replace(
            sample,
            first_byte_s=self._since(marks.first_byte),
            first_token_s=self._since(marks.first_token) or told_s,
            first_point_s=self._since(marks.first_point),
            tokens=answer.tokens,
            flaw=self._checker.flaw(question, answer, greedy=self._greedy[id(question)]),
        )

    def _since(self, instant: float | None) -> float | None:
        return None if instant is None else instant - self._begin

    async def _exchange(self, body: bytes, feed: Callable[[bytes, float], None]) -> str | None:
        """Send, and read to the end; the kind of error where there is one. Raises AnswerError."""
        import aiohttp

        try:
            async with self._session.post(self._target.url, data=body) as response:
                if response.status != 200:
                    return error_kind(response.status, await response.read())
                async for chunk in response.content.iter_any():
                    feed(chunk, time.perf_counter())
        except TimeoutError:
            return "timeout"
        except aiohttp.ClientConnectorError:
            return "no connection"
        except (aiohttp.ClientError, OSError) as error:
            return f"broken off: {type(error).__name__}"
        return None
