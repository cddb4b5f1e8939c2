"""`simpleseg bench`: a load on a server, and how it bears it."""

import asyncio
import json
import os
import shlex
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import typer

from simpleseg import __version__
from simpleseg.batch import BatchError
from simpleseg.bench.checking import Checker, Rules
from simpleseg.bench.hardware import hardware
from simpleseg.bench.load import Load, run_load_async
from simpleseg.bench.questions import (
    DEMO_SETS,
    PACKAGED,
    ImageFormat,
    Pictures,
    Question,
    load_questions,
)
from simpleseg.bench.ramp import Ramp, capacity, climb
from simpleseg.bench.report import Report, write
from simpleseg.bench.result import LoadResult
from simpleseg.bench.servers import ServerError, identity, own_server
from simpleseg.bench.terminal import show, watching
from simpleseg.bench.wire import Target
from simpleseg.cli_bench_options import (
    Arrivals,
    ArrivalsOption,
    AsJsonOption,
    BaseUrlOption,
    ConcurrencyOption,
    DataOption,
    DurationOption,
    EndpointName,
    EndpointOption,
    FieldsOption,
    FormatName,
    GoldenIouOption,
    ImageFormatOption,
    NoteOption,
    OutputOption,
    PhrasesOption,
    QuestionsOption,
    QuickOption,
    RampOption,
    RateOption,
    RequestsOption,
    ReuseOption,
    SeedOption,
    SizesOption,
    SloMsOption,
    StreamOption,
    SustainedOption,
    TimeoutOption,
    TruthIouOption,
    WarmupOption,
)
from simpleseg.cli_support import EngineName, EngineOption, Failure, ModelOption, extra
from simpleseg.errors import InvalidInputError
from simpleseg_polygon.geometry import ImageSize

_QUICK_DURATION_S, _QUICK_WARM_UP_S = 5.0, 1.0
_PACKAGES = ("aiohttp", "hdrhistogram", "torch", "transformers", "vllm")


_FORMATS: dict[FormatName, ImageFormat] = {FormatName.png: "png", FormatName.jpeg: "jpeg"}


@dataclass(frozen=True)
class Plan:
    """What is measured: one load for each level, or a ramp from the first."""

    load: Load
    levels: Sequence[float]
    ramp: Ramp | None
    rules: Rules


def bench(
    *,
    base_url: BaseUrlOption = None,
    engine: EngineOption = EngineName.embedded,
    model: ModelOption = None,
    endpoint: EndpointOption = EndpointName.segment,
    stream: StreamOption = False,
    field: FieldsOption = None,
    data: DataOption = None,
    phrase: PhrasesOption = None,
    images: QuestionsOption = 64,
    size: SizesOption = None,
    image_format: ImageFormatOption = FormatName.png,
    reuse: ReuseOption = None,
    concurrency: ConcurrencyOption = None,
    rate: RateOption = None,
    arrivals: ArrivalsOption = Arrivals.poisson,
    ramp: RampOption = False,
    slo_ms: SloMsOption = None,
    sustained: SustainedOption = 0.95,
    duration: DurationOption = 30.0,
    warmup: WarmupOption = 5.0,
    requests: RequestsOption = None,
    timeout: TimeoutOption = 120.0,
    golden_iou: GoldenIouOption = 1.0,
    truth_iou: TruthIouOption = 0.0,
    seed: SeedOption = 0,
    output: OutputOption = None,
    note: NoteOption = None,
    quick: QuickOption = False,
    as_json: AsJsonOption = False,
) -> None:
    """Put a load on a server and measure latency, throughput, goodput and whether answers stay
    right.

    A closed loop (--concurrency) has users that ask again when answered; an open loop (--rate)
    sends when requests are due, whatever the server does, and counts latency from then. An API key
    is read from SIMPLESEG_API_KEY.
    """
    seconds = (_QUICK_DURATION_S, _QUICK_WARM_UP_S) if quick else (duration, warmup)
    with _usage():
        load = Load("closed", 1, *seconds, requests, slo_ms, reuse, seed)
        rules = Rules(golden_iou, truth_iou)
        plan = _plan(load, concurrency, rate, arrivals, sustained if ramp else None, rules)
        pictures = Pictures([_size(text) for text in size or []], _FORMATS[image_format])
        fields = dict(_field(text) for text in field or [])
        name, questions = _questions(data, phrase or [], images, pictures)
    _require_extra()
    api_key = os.environ.get("SIMPLESEG_API_KEY")
    with _server(base_url, engine, model) as url:
        told = identity(url, api_key)
        named = model or told["model"] if endpoint is EndpointName.chat else None
        target = Target(url, endpoint.value, stream, named, fields, api_key, timeout)
        facts = {**_setting(note), "server": told, **_asked(target, questions, name, seed)}
        report = _measured(plan, target, questions, facts)
    _tell(report, output, as_json=as_json)


@contextmanager
def _usage() -> Generator[None]:
    """Turn what is wrong with the options into a Failure with status 2."""
    try:
        yield
    except (ValueError, BatchError, InvalidInputError) as error:
        raise Failure(str(error), status=2) from error


def _require_extra() -> None:
    """Before a server is started; what needs them imports them when it runs."""
    with extra("bench"):
        for name in ("aiohttp", "hdrh.histogram", "matplotlib.figure"):
            import_module(name)


def _tell(report: Report, output: Path | None, *, as_json: bool) -> None:
    show(report)
    if output is not None:
        for path in write(report, output):
            typer.echo(f"wrote {path}", err=True)
    if as_json:
        typer.echo(json.dumps(report.document()))
    if not any(sample.is_right for result in report.results for sample in result.samples):
        raise Failure("no request was answered rightly")


def _plan(
    load: Load,
    concurrency: str | None,
    rate: str | None,
    arrivals: Arrivals,
    sustained: float | None,
    rules: Rules,
) -> Plan:
    """Raises ValueError for options that do not go together."""
    if concurrency is not None and rate is not None:
        raise ValueError("give --concurrency or --rate, not both")
    levels = [float(text) for text in (rate or concurrency or "1").split(",")]
    load = replace(load, mode="closed" if rate is None else arrivals.value, level=levels[0])
    for level in levels:
        load.at(level)
    if sustained is None:
        return Plan(load, levels, None, rules)
    if rate is None or load.slo_ms is None:
        raise ValueError("--ramp needs --rate, to begin with, and --slo-ms")
    return Plan(load, levels, Ramp(levels[0], sustained=sustained), rules)


def _size(text: str) -> ImageSize:
    """
    >>> _size("640x480")
    ImageSize(height=480, width=640)
    """
    width, cross, height = text.partition("x")
    if not (cross and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise ValueError(f"--size is like 640x480, not {text!r}")
    return ImageSize(int(height), int(width))


def _field(text: str) -> tuple[str, Any]:
    """
    >>> _field("max_points=24"), _field("task=box")
    (('max_points', 24), ('task', 'box'))
    """
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(f"--field is like max_points=24, not {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _questions(
    data: str | None, phrases: Sequence[str], limit: int, pictures: Pictures
) -> tuple[str, list[Question]]:
    """The name of the data, and the questions."""
    if data is not None:
        with extra("training"):
            return data, load_questions(data, phrases=phrases, limit=limit, pictures=pictures)
    try:
        return DEMO_SETS[1], load_questions(DEMO_SETS[1], limit=limit, pictures=pictures)
    except ModuleNotFoundError:
        return PACKAGED, load_questions(PACKAGED, limit=limit, pictures=pictures)


@contextmanager
def _server(base_url: str | None, engine: EngineName, model: str | None) -> Generator[str]:
    """The URL of the server to measure; one that is started here ends with the block."""
    try:
        if base_url is not None:
            yield base_url.rstrip("/")
            return
        named = [] if model is None else ["--model", model]
        typer.echo("starting a server", err=True)
        with own_server(["--engine", engine.value, *named]) as url:
            yield url
    except ServerError as error:
        raise Failure(str(error)) from error


def _setting(note: str | None) -> dict[str, Any]:
    """What was run, when and on what."""
    noted = {} if note is None else {"note": note}
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **noted,
        "hardware": hardware(),
        "versions": {"simpleseg": __version__, **dict(_versions())},
    }


def _asked(target: Target, questions: Sequence[Question], name: str, seed: int) -> dict[str, Any]:
    """What was asked, and how."""
    return {
        "endpoint": f"{target.endpoint}{', streamed' if target.stream else ''}",
        "fields": dict(target.extra),
        "input": {
            "data": name,
            "questions": len(questions),
            "images": len({question.image_name for question in questions}),
            "mean_image_bytes": _mean_bytes(questions),
            "seed": seed,
        },
    }


def _mean_bytes(questions: Sequence[Question]) -> int:
    sizes = [len(question.image.get("base64", "")) * 3 // 4 for question in questions]
    return sum(sizes) // len(sizes)


def _versions() -> Generator[tuple[str, str]]:
    """Of what is installed here, where the generator runs."""
    for package in _PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def _measured(
    plan: Plan, target: Target, questions: Sequence[Question], facts: dict[str, Any]
) -> Report:
    checker = Checker(plan.rules)  # of all levels, so that their answers are compared

    async def at(level: float) -> LoadResult:
        load = plan.load.at(level)
        with watching(load) as tell:
            return await run_load_async(target, questions, load, checker=checker, tell=tell)

    async def all_levels() -> list[LoadResult]:
        if plan.ramp is not None:
            return await climb(plan.ramp, at)
        return [await at(level) for level in plan.levels]

    with _usage():
        results = asyncio.run(all_levels())
    best = None if plan.ramp is None else capacity(plan.ramp, results)
    return Report(facts, results, best, is_ramp=plan.ramp is not None)
