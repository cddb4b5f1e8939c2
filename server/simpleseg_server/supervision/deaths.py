"""How an engine's process ended, and when the next one may begin."""

import signal
from collections import Counter
from pathlib import Path

from simpleseg_server.engines.base import DeathReason

EXIT_MEMORY = 77
"""Status of a process that ended itself since it had no memory left."""

LOOP_DEATHS = 5
LOOP_WINDOW_S = 60.0
"""So many deaths in a row are a crash loop, where no engine between lived so long or answered."""

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0
_VMSTAT = Path("/proc/vmstat")


def oom_kills() -> int:
    """How often the kernel has killed a process for its memory; 0 where it does not tell."""
    try:
        lines = _VMSTAT.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def reason_of(exit_code: int | None, oom_kills_since: int) -> DeathReason:
    """
    >>> reason_of(-9, 0), reason_of(-9, 1), reason_of(-11, 0), reason_of(EXIT_MEMORY, 0)
    ('killed', 'memory', 'crash', 'memory')
    """
    if exit_code == EXIT_MEMORY or (exit_code == -signal.SIGKILL and oom_kills_since):
        return "memory"
    if exit_code in (-signal.SIGKILL, -signal.SIGTERM):
        return "killed"
    return "crash"


class Deaths:
    """Counts deaths by reason, and says how long to wait after the last.

    The first restart is at once, later ones wait twice as long each time. An engine that answered,
    or lived for a minute, served: its death begins a new count.

    >>> deaths = Deaths()
    >>> [(deaths.add("crash", lived_s=0.1), deaths.wait_s)[1] for _ in range(6)]
    [0.0, 0.5, 1.0, 2.0, 4.0, 8.0]
    >>> deaths.is_loop
    True
    """

    def __init__(self) -> None:
        self._in_a_row = 0
        self.by_reason: Counter[DeathReason] = Counter()

    def add(self, reason: DeathReason, *, lived_s: float, had_answered: bool = False) -> None:
        """``lived_s`` counts from when it was ready; 0 where it never was."""
        self.by_reason[reason] += 1
        if had_answered or lived_s >= LOOP_WINDOW_S:
            self._in_a_row = 0
        self._in_a_row += 1

    @property
    def is_loop(self) -> bool:
        return self._in_a_row >= LOOP_DEATHS

    @property
    def wait_s(self) -> float:
        """Seconds from the last death to the next start."""
        if self._in_a_row < 2:
            return 0.0
        return min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** (self._in_a_row - 2))
