"""Commands that measure a model: `simpleseg eval`, `simpleseg calibrate`."""

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import typer
from numpy.typing import NDArray

from simpleseg.cli_support import (
    ANSWER_TIMEOUT_S,
    EngineName,
    EngineOption,
    Failure,
    ModelOption,
    UrlOption,
    connection,
    extra,
)
from simpleseg.results import region_of
from simpleseg.schema import Result, Scores, Task
from simpleseg_polygon.codec import format_box, format_region
from simpleseg_polygon.confidence import Calibration, Evidence
from simpleseg_polygon.geometry import Box

if TYPE_CHECKING:
    from simpleseg_training import calibrate as calibration
    from simpleseg_training import evaluate as evaluation

Located = Literal["region", "box"]
_TOGETHER = 8
"""Questions under way, so that they share the engine's steps."""

Ask = Callable[[NDArray[np.uint8], str, Task], Result]


def evaluate(
    data: Annotated[
        str,
        typer.Option(
            help="demo-single, demo-multi, demo-hard, demo-stress:FOLDER, refcoco:ROOT (refcoco+, "
            "refcocog, refclef), refcoco-family:ROOT (every split of the paper's tables), a COCO "
            ".json, or a folder with masks/ or samples.json."
        ),
    ],
    split: Annotated[str, typer.Option(help="train, val, test, or a set's testA, ...")] = "test",
    limit: Annotated[int, typer.Option(min=1, help="How many cases.")] = 500,
    engine: EngineOption = EngineName.embedded,
    url: UrlOption = None,
    model: ModelOption = None,
    failures: Annotated[
        Path | None, typer.Option(help="Draw the worst answers into this picture.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="HTML", help="Write a page with the best, median and worst answers."),
    ] = None,
    tasks: Annotated[
        str, typer.Option(help="res (regions), rec (boxes), or both, separated by a comma.")
    ] = "res,rec",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the metrics as one JSON object, last.")
    ] = False,
) -> None:
    """Measure answers on held-out data: IoU, boxes, tokens, latency, and the baselines; on the
    RefCOCO family beside published results."""
    with extra("training"):
        from simpleseg_training import evaluate as evaluation
        from simpleseg_training import published
        from simpleseg_training.pictures import failures_sheet
        from simpleseg_training.report import write_report
    questions = _questions(tasks)
    parts = published.parts(data, split)

    async def measure() -> "list[tuple[dict[str, float], list[evaluation.Judged]]]":
        loop = asyncio.get_running_loop()
        async with connection(url, model, engine) as client:

            def answer(image_hw3: NDArray[np.uint8], phrase: str, task: Task) -> evaluation.Reply:
                asked = client.respond(image_hw3, phrase, task=task, timeout=ANSWER_TIMEOUT_S)
                response = asyncio.run_coroutine_threadsafe(asked, loop).result()
                return evaluation.Reply(
                    text=answer_text(response.results[0]),
                    completion_tokens=response.usage.completion_tokens,
                    forward_passes=response.usage.forward_passes,
                    milliseconds=response.timings_ms["total"],
                )

            # The evaluation asks and waits; it has a thread of its own, so that the loop is free.
            return [
                await asyncio.to_thread(
                    evaluation.run, name, part, limit, answer, _progress, questions
                )
                for name, part in parts
            ]

    try:
        found = asyncio.run(measure())
    except ValueError as error:
        raise Failure(str(error)) from error
    judged = [one for _, of_part in found for one in of_part]
    metrics = evaluation.metrics_of(judged)
    if failures is not None:
        failures_sheet(judged).save(failures)
    if report is not None:
        write_report(f"{data}, {split}", metrics, judged, report)
    columns = {
        column: measured
        for (name, part), (measured, _) in zip(parts, found, strict=True)
        if (column := published.column_of(name, part))
    }
    if as_json:
        splits = {" ".join(column): measured for column, measured in columns.items()}
        by_split = {"splits": splits} if len(parts) > 1 else {}
        typer.echo(json.dumps({"data": data, "split": split, **metrics, **by_split}))
        return
    typer.echo("\n".join(f"{name:<20} {value:.4g}" for name, value in metrics.items()))
    if columns:
        tables = published.comparison(columns, f"this model, {limit} cases each at most")
        typer.echo(f"\n{tables}\n\n{published.SOURCE}")


def _questions(tasks: str) -> "list[evaluation.Question]":
    named = tasks.split(",")
    known: list[evaluation.Question] = ["res", "rec"]
    if unknown := [name for name in named if name not in known]:
        raise Failure(f"no task {unknown[0]!r}: use res, rec, or both")
    return [name for name in known if name in named]


def answer_text(result: Result) -> str:
    """What the server understood, in the polygon language; "" for an answer it could not use.

    >>> answer_text(Result(index=0, status="empty", finish_reason="stop", polygons=[]))
    '[]'
    """
    if result.status == "invalid":
        return ""
    if result.boxes is not None:
        boxes = [format_box(Box(*box)) for box in result.boxes]
        return boxes[0] if len(boxes) == 1 else f"[{', '.join(boxes)}]"
    return format_region(region_of(result))


def _progress(done: int, total: int) -> None:
    if done % 50 == 0 or done == total:
        typer.echo(f"{done} of {total}", err=True)


def calibrate(
    *,
    data: Annotated[
        str, typer.Option(help="Data to ask about, separated by commas.")
    ] = "demo-single,demo-multi,demo-hard",
    split: Annotated[str, typer.Option(help="train, val or test.")] = "val",
    limit: Annotated[int, typer.Option(min=4, help="How many cases of each data set.")] = 1000,
    engine: EngineOption = EngineName.embedded,
    url: UrlOption = None,
    model: ModelOption = None,
    write: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write it into the checkpoint in this folder."),
    ] = None,
    diagram: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Draw expected against true IoU.")
    ] = None,
) -> None:
    """Fit the score of a model's answers to their true IoU: on one half of the cases, measured on
    the other. The last line printed is one JSON object."""
    with extra("training"):
        from simpleseg_training import calibrate as calibration

    async def answers() -> dict[Task, list[calibration.Scored]]:
        loop = asyncio.get_running_loop()
        async with connection(url, model, engine) as client:

            def ask(image_hw3: NDArray[np.uint8], phrase: str, task: Task) -> Result:
                asked = client.respond(
                    image_hw3, phrase, task=task, include=["scores"], timeout=ANSWER_TIMEOUT_S
                )
                return asyncio.run_coroutine_threadsafe(asked, loop).result().results[0]

            return await asyncio.to_thread(_scored, ask, data.split(","), split, limit)

    try:
        scored = asyncio.run(answers())
    except ValueError as error:
        raise Failure(str(error)) from error
    fitted: dict[Task, Calibration] = {
        task: calibration.fit(found[::2]) for task, found in scored.items()
    }
    held: dict[Task, calibration.Reliability] = {
        task: calibration.reliability(fitted[task], scored[task][1::2]) for task in fitted
    }
    if write is not None:
        calibration.write_profile(fitted, write)
    if diagram is not None:
        calibration.write_diagram(held["region"], diagram)
    report = {task: {"n": sum(found.counts), **asdict(found)} for task, found in held.items()}
    typer.echo(json.dumps({"data": data, "split": split, **report}))


def _scored(
    ask: Ask, data: Sequence[str], split: str, limit: int
) -> "dict[Task, list[calibration.Scored]]":
    """Evidence and true IoU of the answers that say where something is."""
    from simpleseg_training import calibrate as calibration
    from simpleseg_training.cases import Case, load_cases
    from simpleseg_training.evaluate import EVALUATION_PX, true_iou

    tasks: tuple[Located, ...] = ("region", "box")
    scored: dict[Task, list[calibration.Scored]] = {task: [] for task in tasks}
    cases = [case for name in data for case in load_cases(name, split, limit, EVALUATION_PX)]
    asked: list[tuple[Case, Located]] = [(case, task) for case in cases for task in tasks]

    def answer(one: tuple[Case, Located]) -> Result:
        case, task = one
        return ask(case.image_hw3, case.phrase, task)

    with ThreadPoolExecutor(_TOGETHER) as pool:
        for done, ((case, task), result) in enumerate(
            zip(asked, pool.map(answer, asked), strict=True), start=1
        ):
            if result.scores is not None:
                iou = true_iou(case, answer_text(result), task)
                scored[task].append(calibration.Scored(_evidence(result.scores), iou))
            _progress(done, len(asked))
    return scored


def _evidence(scores: Scores) -> Evidence:
    """Mean probabilities as means of logarithms; one that was rounded to 0 counts as 1e-9."""
    return Evidence(**{name: math.log(max(value, 1e-9)) for name, value in dict(scores).items()})
