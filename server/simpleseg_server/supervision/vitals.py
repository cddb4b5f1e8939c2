"""Whether a process that should answer is stuck, judged from outside of it.

Nothing that a stuck process says of itself can be believed, so two things are looked at: what it
gives away by working (heartbeats of its event loop, tokens of its answers), and what the kernel
knows of it. A process that is silent and uses no CPU time is stuck; one that computes gets more
patience, since a long prompt on a slow machine is no fault.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Verdict = Literal["stopped", "hang"]
TICK_S = 0.25
"""Between two looks at the process."""

_LONGEST_TICK_S = 0.5
_IDLE_SHARE = 0.05
_PROC = Path("/proc")


@dataclass(frozen=True)
class Sample:
    """What the kernel says of some processes: seconds of CPU time of all, whether all are stopped
    by a signal, and whether any waits for a disk."""

    cpu_s: float
    is_stopped: bool = False
    is_in_io: bool = False


@dataclass(frozen=True)
class Patience:
    """Seconds: without a sign of life from a process that is ``idle`` or ``stopped``; without a
    heartbeat (``silence``) or a token of any answer (``stall``) from one that computes."""

    idle_s: float = 2.0
    stopped_s: float = 1.0
    silence_s: float = 10.0
    stall_s: float = 60.0


class Vitals:
    """The signs of life of an engine's processes, which have ``running`` requests.

    Call ``check`` every ``TICK_S`` or more often. Time counts as it is seen: where this process
    itself stood still, the other one is not blamed. ``has_heart`` False: there are no heartbeats.
    """

    def __init__(
        self,
        pids: Callable[[], Iterable[int]],
        running: Callable[[], int],
        patience: Patience,
        *,
        has_heart: bool = True,
        clock: Callable[[], float] = time.monotonic,
        look: "Callable[[Iterable[int]], Sample | None] | None" = None,
    ) -> None:
        self._pids = pids
        self._patience = patience
        self._has_heart = has_heart
        self._clock = clock
        self._look = look or sample
        self._running = running
        self._silent_s = 0.0
        self._stalled_s = 0.0
        self._looked_at = clock()
        self._samples: deque[Sample] = deque(maxlen=1 + round(patience.idle_s / TICK_S))

    def beat(self) -> None:
        self._silent_s = 0.0

    def progress(self) -> None:
        """A token came, of any answer."""
        self._stalled_s = 0.0

    def check(self) -> Verdict | None:
        """What is wrong; None where nothing is, or is not known yet."""
        passed = self._clock() - self._looked_at
        if passed < TICK_S:
            return None
        self._looked_at += passed
        passed = min(passed, _LONGEST_TICK_S)
        self._silent_s += passed if self._has_heart else 0.0
        self._stalled_s = self._stalled_s + passed if self._running() else 0.0
        seen = self._look(self._pids())
        if seen is None:  # gone, which others notice, or a system that does not tell
            self._samples.clear()
        else:
            self._samples.append(seen)
        return self._verdict()

    def _verdict(self) -> Verdict | None:
        patience = self._patience
        recent = list(self._samples)[-round(patience.stopped_s / TICK_S) - 1 :]
        is_long = len(recent) > patience.stopped_s / TICK_S
        if is_long and all(one.is_stopped for one in recent):
            return "stopped"
        quiet_s = max(self._silent_s, self._stalled_s)
        if quiet_s >= patience.idle_s and self._is_idle():
            return "hang"
        if self._silent_s >= patience.silence_s or self._stalled_s >= patience.stall_s:
            return "hang"
        return None

    def _is_idle(self) -> bool:
        if len(self._samples) < (self._samples.maxlen or 0):
            return False
        if any(one.is_in_io for one in self._samples):
            return False
        used = self._samples[-1].cpu_s - self._samples[0].cpu_s
        return used < _IDLE_SHARE * self._patience.idle_s


def sample(pids: Iterable[int]) -> Sample | None:
    """The processes and their children, from ``/proc``; None where it cannot be read."""
    try:
        found = [_read(pid) for pid in with_children(pids)]
    except (OSError, ValueError, IndexError):
        return None
    if not found:
        return None
    states = [state for state, _ in found]
    return Sample(
        cpu_s=sum(cpu_s for _, cpu_s in found),
        is_stopped=all(state in "Tt" for state in states),
        is_in_io="D" in states,
    )


def with_children(pids: Iterable[int]) -> Sequence[int]:
    """The processes and all that descend from them."""
    left, found = list(pids), []
    while left:
        pid = left.pop()
        found.append(pid)
        for file in (_PROC / str(pid) / "task").glob("*/children"):
            left += map(int, file.read_text().split())
    return found


def _read(pid: int) -> tuple[str, float]:
    """State and seconds of CPU time."""
    fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return fields[0], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
