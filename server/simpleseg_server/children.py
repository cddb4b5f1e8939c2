"""The processes that this one has started, and the end of them."""

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
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
    _kill(children)
    for child in children:
        with suppress(OSError):  # a grandchild is another's to wait for
            os.waitpid(child, 0)


@contextmanager
def none_after_failure() -> Iterator[None]:
    """Kill the children that the block has begun where it raises: they would go on importing for
    seconds, and hold the standard error that somebody waits for the end of."""
    before = set(descendants())
    try:
        yield
    except BaseException:
        _kill(set(descendants()) - before)  # whoever started them sees their end
        raise


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
