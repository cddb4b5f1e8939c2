"""A load on the terminal: a bar while it runs, a table at the end."""

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import numpy as np

from simpleseg.bench.load import Load, Tell
from simpleseg.bench.report import COLUMNS, Report, row
from simpleseg.bench.result import Sample

_LATELY = 500


@contextmanager
def watching(load: Load) -> Generator[Tell]:
    """A bar on standard error with what was measured so far, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[told]}"),
    )
    unit = f"closed x{load.level:g}" if load.mode == "closed" else f"{load.mode} {load.level:.4g}/s"
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task, began = bar.add_task(f"{unit:<16}", total=1.0, told="warming up"), time.monotonic()

        def tell(samples: Sequence[Sample]) -> None:
            if load.requests is None:
                done = (time.monotonic() - began) / (load.warmup_s + load.duration_s)
            else:
                done = len(samples) / load.requests
            told = so_far(samples) if samples else "warming up"
            bar.update(task, completed=min(done, 1.0), told=told)

        yield tell


def so_far(samples: Sequence[Sample]) -> str:
    """
    >>> so_far([Sample(0.0, 0.0, 0.25, 1), Sample(0.5, 0.5, 1.0, 1, error="timeout")])
    '2 done, 2.0/s, p50 250 ms, p99 250 ms, 1 errors'
    """
    last = samples[-_LATELY:]
    errors = sum(sample.error is not None for sample in samples)
    latencies = [1e3 * sample.latency_s for sample in last if sample.error is None]
    p50, p99 = np.percentile(latencies, (50, 99)) if latencies else (float("nan"),) * 2
    span_s = last[-1].done_s - min(sample.due_s for sample in last)
    told = f"{len(samples)} done, {len(last) / max(span_s, 1e-3):.1f}/s"
    return f"{told}, p50 {p50:.0f} ms, p99 {p99:.0f} ms, {errors} errors"


def show(report: Report) -> None:
    """The table and the verdict, on standard output."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for number, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for result in report.results:
        table.add_row(*row(result))
    console.print(table)
    for sentence in report.verdict():
        console.print(sentence, highlight=False)
