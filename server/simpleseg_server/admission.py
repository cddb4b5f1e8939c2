"""Admission: how many requests are in the house and how many prompts the engine works on at once.

``enter`` is taken before the body is read, so that a full server refuses cheaply; ``slot`` is taken
for each prompt just before the engine. Both are fair to API keys: what one of them asks for beyond
its share waits, and goes first where room is needed.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from simpleseg_server.engines.base import EngineError
from simpleseg_server.errors import deadline_exceeded, overloaded

_SILENCE_S = 0.25
"""A request whose body has paused for so long makes room for one that needs it."""
_SMOOTHING = 0.1
"""Weight of the newest prompt in the mean time of a prompt."""


class WaitedTooLongError(EngineError):
    """A prompt's turn did not come in the time that the server gives it."""


@dataclass(eq=False)
class Ticket:
    """One request in the house, of the client ``owner``.

    It can be sent away until the engine has begun on it, or ``pin`` was called because its answer
    has. ``line`` holds its prompts that wait, since ``turn``. ``heard_at`` is when bytes of its
    body came last, None once all are there.
    """

    owner: str
    task: asyncio.Task[object] | None = None
    running: int = 0
    turn: int = 0
    line: deque[asyncio.Future[None]] = field(default_factory=deque)
    is_pinned: bool = False
    is_sent_away: bool = False
    heard_at: float | None = field(default_factory=time.monotonic)

    def heard(self, is_all: bool = False) -> None:
        """Some of the body has come, or the last of it."""
        self.heard_at = None if is_all else time.monotonic()

    def is_silent(self) -> bool:
        return self.heard_at is not None and time.monotonic() - self.heard_at > _SILENCE_S

    def pin(self) -> None:
        self.is_pinned = True

    @property
    def is_movable(self) -> bool:
        return self.task is not None and not self.is_pinned

    def send_away(self) -> None:
        assert self.task is not None
        self.is_sent_away = True
        self.task.cancel()


def current_ticket() -> Ticket | None:
    """That of the request under way."""
    return _current.get()


_current: ContextVar[Ticket | None] = ContextVar("ticket", default=None)


class Admission:
    """Bounds of one server; used from its event loop only.

    At most ``slots`` prompts run at once, and at most ``slots + max_queued_requests`` requests are
    admitted: at worst each of the running prompts belongs to a request of its own. A prompt waits
    for at most ``max_queue_s`` seconds.
    """

    def __init__(
        self,
        *,
        slots: int,
        max_queued_requests: int,
        retry_after_s: float,
        max_queue_s: float | None = None,
    ) -> None:
        self.slots = slots
        self._free = slots
        self._max_requests = slots + max_queued_requests
        self._retry_after_s = retry_after_s
        self._max_queue_s = max_queue_s
        self._tickets: dict[Ticket, None] = {}
        self._held: Counter[str] = Counter()  # tickets by owner
        self._running: Counter[str] = Counter()
        self._lines: dict[Ticket, None] = {}
        self._turn = 0
        self._last_turns: dict[str, int] = {}
        self._waiting = 0
        self._prompt_s = 0.0

    @property
    def requests(self) -> int:
        """Admitted requests that are not answered yet."""
        return len(self._tickets)

    @property
    def waiting_prompts(self) -> int:
        """Prompts that wait for a slot."""
        return self._waiting

    @property
    def is_full(self) -> bool:
        """Whether a request more needs one to give way."""
        return len(self._tickets) >= self._max_requests

    @contextmanager
    def enter(self, owner: str = "") -> Iterator[Ticket]:
        """Hold a place for one request of the client ``owner``.

        Raises ApiError 503 ``overloaded`` where none is left, also later, where the place is needed
        for a client that holds fewer.
        """
        if self.is_full:
            self._make_room(owner)
        ticket = Ticket(owner, _task())
        self._tickets[ticket] = None
        self._held[owner] += 1
        _current.set(ticket)
        try:
            yield ticket
        except asyncio.CancelledError:
            if not ticket.is_sent_away or _uncancelled(ticket.task):
                raise
            raise overloaded(self._retry_after_s) from None
        finally:
            self._leave(ticket)

    def _leave(self, ticket: Ticket) -> None:
        if ticket in self._tickets:
            del self._tickets[ticket]
            self._held[ticket.owner] -= 1
            if not self._held[ticket.owner]:
                del self._held[ticket.owner]

    def has_room(self, owner: str) -> bool:
        """Whether ``enter`` would let this client in now."""
        return not self.is_full or self._giving_way(owner) is not None

    def _make_room(self, owner: str) -> None:
        ticket = self._giving_way(owner)
        if ticket is None:
            raise overloaded(self._retry_after_s)
        self._leave(ticket)
        ticket.send_away()

    def _giving_way(self, owner: str) -> Ticket | None:
        """A request whose body does not come, or else the newest waiting one of the client with the
        most; None where that would be unfair."""
        held = self._held
        for one in self._tickets:
            if one.is_silent() and one.is_movable and held[one.owner] >= held[owner]:
                return one
        heaviest = max(held, key=held.__getitem__)
        if held[heaviest] <= held[owner] + 1:
            return None
        waiting = (one for one in reversed(self._tickets) if one.owner == heaviest)
        return next((one for one in waiting if one.is_movable), None)

    def require_time(self, seconds: float) -> None:
        """Raises ApiError 503 ``deadline_exceeded`` where a prompt that waits from now on will
        hardly begin within some seconds."""
        expected_s = self.expected_wait_s()
        if expected_s > seconds:
            raise deadline_exceeded(max(self._retry_after_s, expected_s - seconds))

    def expected_wait_s(self) -> float:
        """How long the current request's next prompt will wait for a slot, by the prompts before it
        and the time that prompts take."""
        if self._free:
            return 0.0
        owner = "" if (ticket := _current.get()) is None else ticket.owner
        waiting = Counter[str]()
        for one in self._lines:
            waiting[one.owner] += len(one.line)
        clients = len(waiting.keys() | {owner})
        before = min(waiting.total(), waiting[owner] * clients)
        return (before + 1) * self._prompt_s / self.slots

    @asynccontextmanager
    async def slot(self, clock: Callable[[], float] = time.perf_counter) -> AsyncIterator[float]:
        """Hold the engine for one prompt; yields the milliseconds that it waited.

        Raises WaitedTooLongError.
        """
        began = clock()
        ticket = _current.get() or Ticket("")
        await self._acquire(ticket)
        given = clock()
        try:
            yield (given - began) * 1000
        finally:
            self._release(ticket)
            took = clock() - given
            self._prompt_s += (_SMOOTHING if self._prompt_s else 1.0) * (took - self._prompt_s)

    async def _acquire(self, ticket: Ticket) -> None:
        if self._free and not self._lines:
            self._give(ticket)
            return
        place = asyncio.get_running_loop().create_future()
        if not ticket.line:
            ticket.turn = self._next_turn()
        ticket.line.append(place)
        self._lines[ticket] = None
        self._waiting += 1
        try:
            async with asyncio.timeout(self._max_queue_s) as limit:
                await place
        except BaseException as error:
            if place.done() and not place.cancelled():
                self._release(ticket)
            elif place in ticket.line:
                self._leave_line(ticket, place)
            if isinstance(error, TimeoutError) and limit.expired():
                raise WaitedTooLongError from None
            raise

    def _next_turn(self) -> int:
        self._turn += 1
        return self._turn

    def _leave_line(self, ticket: Ticket, place: asyncio.Future[None]) -> None:
        ticket.line.remove(place)
        self._waiting -= 1
        if not ticket.line:
            self._lines.pop(ticket, None)

    def _give(self, ticket: Ticket) -> None:
        self._free -= 1
        self._running[ticket.owner] += 1
        ticket.running += 1
        ticket.turn = self._last_turns[ticket.owner] = self._next_turn()
        ticket.pin()

    def _release(self, ticket: Ticket) -> None:
        self._free += 1
        self._running[ticket.owner] -= 1
        ticket.running -= 1
        if not self._running[ticket.owner]:
            del self._running[ticket.owner]
        self._give_next()

    def _give_next(self) -> None:
        """To the client that has the fewest prompts running, then to the one whose last turn is the
        longest ago; and so of its requests: a large one does not keep small ones waiting."""
        while self._free and self._lines:
            ticket = min(self._lines, key=self._rank)
            place = ticket.line[0]
            self._leave_line(ticket, place)
            if not place.done():  # else its task was cancelled, and has not run since
                self._give(ticket)
                place.set_result(None)

    def _rank(self, ticket: Ticket) -> tuple[int, int, int, int]:
        owner = ticket.owner
        last = self._last_turns.get(owner, 0)
        return self._running[owner], last, ticket.running, ticket.turn


def _task() -> asyncio.Task[object] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop, so nothing to send away
        return None


def _uncancelled(task: asyncio.Task[object] | None) -> bool:
    """Whether somebody else wants the task to end, too."""
    return task is not None and task.uncancel() > 0
