"""The processes that this one has started, and the end of them."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def descendants(pid: int | None = None) -> Iterator[int]:
    """Process ids, the children of each process before itself; none where there is no ``/proc``."""
    for task in Path(f"/proc/{pid or os.getpid()}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, task.read_text().split()):
                yield from descendants(child)
                yield child


def kill_children() -> None:
    """Kill all of them, and see their end. Raises nothing."""
    children = list(descendants())
    for child in children:
        with suppress(OSError):
            os.kill(child, signal.SIGKILL)
    for child in children:
        with suppress(OSError):  # a grandchild is another's to wait for
            os.waitpid(child, 0)
