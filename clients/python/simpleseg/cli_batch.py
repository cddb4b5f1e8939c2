"""`simpleseg batch`: a folder or a JSONL file in, JSONL or COCO out."""

import asyncio
import signal
from collections.abc import Generator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any, Unpack

import typer

from simpleseg.async_client import AsyncSimpleSeg
from simpleseg.batch import BatchError
from simpleseg.batch.coco import check_for_coco, write_coco
from simpleseg.batch.journal import Journal, drop_failed
from simpleseg.batch.on_ray import Spread
from simpleseg.batch.run import Halt, Run, missing
from simpleseg.batch.source import Source, read_source
from simpleseg.cli_support import (
    ANSWER_TIMEOUT_S,
    ClientOptions,
    EngineName,
    EngineOption,
    Failure,
    ModelOption,
    RayOption,
    ShardSizeOption,
    UrlOption,
    WorkersOption,
    connection,
    extra,
)
from simpleseg.progress import progress_bar
from simpleseg.retry import RetryBudget
from simpleseg.shards import ForeignShardsError, Shards
from simpleseg.spread import WorkerError

_FILES = (".jsonl", ".json")
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
        str,
        typer.Option(
            "--output",
            "-o",
            help="answers.jsonl, or dataset.json for COCO; with --ray the path or URL of a folder.",
        ),
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
    shard_size: ShardSizeOption = 128,
) -> None:
    """Segment many images. The same command again goes on where the last one ended.

    A line of a file is {"image": PATH_OR_URL, "prompts": [PHRASE, ...]} with any other field of
    POST /segment, or a line of OpenAI's batch format for /v1/segment, whose image may be
    {"path": PATH}. Paths are relative to the file's folder. Answers are lines of OpenAI's batch
    output, one for each custom_id. A COCO data set is made of them at the end; they stand beside
    it, in a .jsonl. With --ray they are in several .jsonl, which together are such a file.
    """
    if ray == (PurePath(output).suffix in _FILES):
        wanted = "a folder" if ray else "a .jsonl file, or a .json file for COCO"
        raise Failure(f"{output}: the output is {wanted}", status=2)
    how = _How(url, model, engine, concurrency, retry_errors)
    try:
        with extra("ray"):
            entries = read_source(source, phrase or [], max_points)
        if ray:
            with extra("ray"):
                _into_shards(Spread(entries, Shards(output), shard_size), how, workers)
        else:
            _into_file(entries, Path(output), Path(source), how)
    except (BatchError, ForeignShardsError) as error:
        raise Failure(str(error)) from error


@dataclass(frozen=True)
class _How:
    """Who is asked, and how many images at once."""

    url: str | None
    model: str | None
    engine: EngineName
    concurrency: int
    retry_errors: bool

    def connect(
        self, **options: Unpack[ClientOptions]
    ) -> AbstractAsyncContextManager[AsyncSimpleSeg]:
        options = {"timeout": ANSWER_TIMEOUT_S, "max_retries": _MAX_RETRIES, **options}
        return connection(self.url, self.model, self.engine, **options)


def _into_file(source: Source, output: Path, place: Path, how: _How) -> None:
    answers = output.with_suffix(".jsonl")
    as_coco = output != answers
    if as_coco:
        check_for_coco(source)
    if answers.exists() and place.exists() and answers.samefile(place):
        raise BatchError(f"{answers} is the input")
    if how.retry_errors and answers.exists():
        drop_failed(answers)
    with Journal(answers) as journal:
        check_same(source, journal, answers)
        asyncio.run(_fill(source, journal, how))
        if as_coco:
            write_coco(output, source, journal)
        typer.echo(f"{_counts(source, journal)}; wrote {output}", err=True)


def _into_shards(spread: Spread, how: _How, workers: int) -> None:
    if how.retry_errors:
        spread.retry_errors()
    try:
        with progress_bar(spread.total, done=spread.answered) as advance:
            spread.fill(how.connect, how.concurrency, workers, advance)
    except WorkerError as error:
        words = _in_words(spread.answered, spread.total, spread.failed())
        raise Failure(f"{error}: {words}; the same command goes on") from error
    words = _in_words(spread.answered, spread.total, spread.failed())
    typer.echo(f"{words}; wrote {spread.shards.place}", err=True)


def check_same(source: Source, journal: Journal, path: Path) -> None:
    """Raises BatchError where ``journal`` answers something else under an id of ``source``."""
    for custom_id, digest in source.digests.items():
        mark = journal.marks.get(custom_id)
        if mark is not None and mark.digest != digest:
            raise BatchError(
                f"{path} answers another request as {custom_id!r}: name another output"
            )


async def _fill(source: Source, journal: Journal, how: _How) -> None:
    """Answer what is missing. Raises Failure where that ends early."""
    total, done = len(source.digests), len(source.digests.keys() & journal.marks.keys())
    if done == total:
        return
    if how.url is not None:  # a wrong address is told at once, not after all retries
        async with AsyncSimpleSeg(how.url, max_retries=0) as client:
            await client.models()
    budget = RetryBudget(capacity=_MAX_RETRIES * how.concurrency)
    halt = Halt()
    async with how.connect(retry_budget=budget) as client:
        with progress_bar(total, done=done) as advance, _stoppable(halt):

            def record(line: dict[str, Any]) -> None:
                journal.append(line)
                advance()

            await Run(missing(source, journal), record, client, halt).run(how.concurrency)
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
    answered = [mark for id, mark in journal.marks.items() if id in source.digests]
    return _in_words(len(answered), len(source.digests), sum(mark.failed for mark in answered))


def _in_words(answered: int, total: int, failed: int) -> str:
    """``7 of 9 items answered``, and how many of these are errors."""
    words = f"{answered} of {total} items answered"
    return words + (f", {failed} with an error (--retry-errors asks again)" if failed else "")
