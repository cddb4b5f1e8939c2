"""A bar on standard error, where that is a terminal."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

Advance = Callable[[], None]


@contextmanager
def progress_bar(
    total: int | None, description: str = "segmenting", *, done: int = 0
) -> Generator[Advance]:
    """A bar while inside; what it gives is called once for each item, from any thread.

    ``total`` None draws one that only counts; ``done`` items were done before.
    """
    # Imported here, since nobody else needs it.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total, completed=done)
        yield lambda: bar.advance(task)
