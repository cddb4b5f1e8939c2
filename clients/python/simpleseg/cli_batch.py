"""`simpleseg batch`: a folder or a JSONL file in, JSONL or COCO out."""

import asyncio
import signal
from collections.abc import Generator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from simpleseg.async_client import AsyncSimpleSeg
from simpleseg.batch import BatchError, on_ray
from simpleseg.batch.coco import check_for_coco, write_coco
from simpleseg.batch.journal import Journal, drop_failed
from simpleseg.batch.run import Halt, Run
from simpleseg.batch.source import Source, read_source
from simpleseg.cli_support import (
    ANSWER_TIMEOUT_S,
    EngineName,
    EngineOption,
    Failure,
    ModelOption,
    RayOption,
    UrlOption,
    WorkersOption,
    connection,
    extra,
)
from simpleseg.progress import progress_bar
from simpleseg.retry import RetryBudget
from simpleseg.spread import WorkerError

_MAX_RETRIES = 5  # nobody waits at a prompt, and a server may be restarted meanwhile
_INTERRUPTED = 130  # as a shell has it: 128 and the signal's number


def batch(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="A folder of images, a JSONL file, or the path or URL of .tar or .parquet files.",
        ),
    ],
    phrase: Annotated[
        list[str] | None, typer.Argument(help="What to find in every image without a prompt.")
    ] = None,
    *,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="answers.jsonl, or dataset.json for COCO."),
    ],
    concurrency: Annotated[int, typer.Option(min=1, help="Images asked about at once.")] = 8,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Ask again what failed in an earlier run.")
    ] = False,
    max_points: Annotated[int | None, typer.Option(min=3, help="Most vertices.")] = None,
    engine: EngineOption = EngineName.embedded,
    url: UrlOption = None,
    model: ModelOption = None,
    ray: RayOption = False,
    workers: WorkersOption = 2,
) -> None:
    """Segment many images. The same command again goes on where the last one ended.

    A line of a file is {"image": PATH_OR_URL, "prompts": [PHRASE, ...]} with any other field of
    POST /segment, or a line of OpenAI's batch format for /v1/segment, whose image may be
    {"path": PATH}. Paths are relative to the file's folder. Answers are lines of OpenAI's batch
    output, one for each custom_id. A COCO data set is made of them at the end; they stand beside
    it, in a .jsonl.
    """
    as_coco = output.suffix == ".json"
    if not as_coco and output.suffix != ".jsonl":
        raise Failure(f"{output}: the output is a .jsonl file, or a .json file for COCO", status=2)
    answers = output.with_suffix(".jsonl")
    try:
        with extra("ray"):
            entries = read_source(source, phrase or [], max_points)
        if as_coco:
            check_for_coco(entries)
        if answers.exists() and Path(source).exists() and answers.samefile(source):
            raise BatchError(f"{answers} is the input")
        if retry_errors and answers.exists():
            drop_failed(answers)
        with Journal(answers) as journal:
            check_same(entries, journal, answers)
            if ray:
                _fill_on_ray(entries, journal, workers, url, model, engine)
            else:
                asyncio.run(_fill(entries, journal, concurrency, url, model, engine))
            if as_coco:
                write_coco(output, entries, journal)
            typer.echo(f"{_counts(entries, journal)}; wrote {output}", err=True)
    except (BatchError, WorkerError) as error:
        raise Failure(str(error)) from error


def check_same(source: Source, journal: Journal, path: Path) -> None:
    """Raises BatchError where ``journal`` answers something else under an id of ``source``."""
    for custom_id, digest in source.digests.items():
        mark = journal.marks.get(custom_id)
        if mark is not None and mark.digest != digest:
            raise BatchError(
                f"{path} answers another request as {custom_id!r}: name another output"
            )


async def _fill(
    source: Source,
    journal: Journal,
    concurrency: int,
    url: str | None,
    model: str | None,
    engine: EngineName,
) -> None:
    """Answer what is missing. Raises Failure where that ends early."""
    total, done = _progress(source, journal)
    if done == total:
        return
    if url is not None:  # a wrong address is told at once, not after all retries
        async with AsyncSimpleSeg(url, max_retries=0) as client:
            await client.models()
    budget = RetryBudget(capacity=_MAX_RETRIES * concurrency)
    halt = Halt()
    async with connection(
        url,
        model,
        engine,
        timeout=ANSWER_TIMEOUT_S,
        max_retries=_MAX_RETRIES,
        retry_budget=budget,
    ) as client:
        with progress_bar(total, done=done) as advance, _stoppable(halt):
            run = Run(source, journal, client, halt, advance)
            await run.run(concurrency)
    _check_ended(halt, source, journal)


def _fill_on_ray(
    source: Source,
    journal: Journal,
    workers: int,
    url: str | None,
    model: str | None,
    engine: EngineName,
) -> None:
    """The same with workers of their own. Raises Failure where that ends early."""
    total, done = _progress(source, journal)
    if done == total:
        return
    halt = Halt()
    connect = partial(
        connection, url, model, engine, timeout=ANSWER_TIMEOUT_S, max_retries=_MAX_RETRIES
    )
    with extra("ray"), progress_bar(total, done=done) as advance:
        on_ray.fill(source, journal, connect, halt, advance, workers)
    _check_ended(halt, source, journal)


def _progress(source: Source, journal: Journal) -> tuple[int, int]:
    """How many items there are, and how many have an answer."""
    return len(source.digests), len(source.digests.keys() & journal.marks.keys())


def _check_ended(halt: Halt, source: Source, journal: Journal) -> None:
    if halt.reason is not None:
        counts = f"{_counts(source, journal)}; the same command goes on"
        is_stopped = halt.reason == _STOPPED
        raise Failure(f"{halt.reason}: {counts}", status=_INTERRUPTED if is_stopped else 1)


_STOPPED = "stopped"


@contextmanager
def _stoppable(halt: Halt) -> Generator[None]:
    """While inside, a first Ctrl-C lets the answers under way come in, a second one drops them."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None

    def stop() -> None:
        if halt.reason is not None:
            task.cancel()
            return
        halt.because(_STOPPED)
        typer.echo("waiting for the answers under way; Ctrl-C again drops them", err=True)

    signals = (signal.SIGINT, signal.SIGTERM)
    with suppress(NotImplementedError):  # Windows: Ctrl-C drops them at once
        for number in signals:
            loop.add_signal_handler(number, stop)
    try:
        yield
    except asyncio.CancelledError:
        if halt.reason is None or task.uncancel() > 0:
            raise
    finally:
        with suppress(NotImplementedError):
            for number in signals:
                loop.remove_signal_handler(number)


def _counts(source: Source, journal: Journal) -> str:
    """``7 of 9 items answered``, and how many of these are errors."""
    answered = [mark for id, mark in journal.marks.items() if id in source.digests]
    failed = sum(mark.failed for mark in answered)
    words = f"{len(answered)} of {len(source.digests)} items answered"
    return words + (f", {failed} with an error (--retry-errors asks again)" if failed else "")
