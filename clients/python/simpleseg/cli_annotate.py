"""`simpleseg annotate`: photographs become instruction pairs."""

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simpleseg.cli_data import (
    Convention,
    ConventionOption,
    EpsilonOption,
    Order,
    OrderOption,
    contours_of,
    counter,
)
from simpleseg.cli_support import Failure, extra

if TYPE_CHECKING:
    from simpleseg_training.annotate.parts import Describer

KEY = "SIMPLESEG_DESCRIBE_KEY"


class Form(StrEnum):
    """Of the pairs."""

    jsonl = "jsonl"
    parquet = "parquet"
    tar = "tar"


def annotate(
    images: Annotated[Path, typer.Argument(help="A folder of photographs.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="A folder; a stopped run goes on.")],
    detector: Annotated[
        str, typer.Option(help="grounding-dino:ID, objectron:FOLDER or python:module.factory.")
    ] = "grounding-dino:IDEA-Research/grounding-dino-tiny",
    segmenter: Annotated[
        str, typer.Option(help="sam:ID (SAM or SAM 2), isnet:FOLDER or python:module.factory.")
    ] = "sam:facebook/sam2.1-hiera-small",
    labels: Annotated[str, typer.Option(help="What to look for: 'dog,traffic light'.")] = "",
    describe: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help=f"An OpenAI-compatible endpoint (.../v1) that names objects; key in {KEY}.",
            show_default="phrases from the labels",
        ),
    ] = None,
    describe_model: Annotated[str, typer.Option(help="Its model.")] = "simpleseg",
    marked: Annotated[
        bool, typer.Option(help="Show the object by a red box, or tell its box in numbers.")
    ] = True,
    form: Annotated[Form, typer.Option(help="Of the pairs; tar is WebDataset.")] = Form.jsonl,
    pairs_per_object: Annotated[int, typer.Option(min=1)] = 4,
    score: Annotated[float, typer.Option(min=0, max=1, help="Least score of a detection.")] = 0.3,
    box_agreement: Annotated[
        float,
        typer.Option(min=0, max=1, help="Least IoU of a mask's own box with the detector's."),
    ] = 0.8,
    convention: ConventionOption = Convention.edges,
    order: OrderOption = Order.clockwise,
    epsilon: EpsilonOption = 0.005,
) -> None:
    """Detect, segment, outline, describe, filter: photographs become instruction pairs.

    The folder gets the pairs, contact-sheet.html to look at them, and counts.json, which is printed
    last: what each filter removed.
    """
    with extra("annotate"):
        from simpleseg_training.annotate.describe import Unavailable
        from simpleseg_training.annotate.gate import Gate
        from simpleseg_training.annotate.parts import load_detector, load_segmenter
        from simpleseg_training.annotate.pipeline import Parts, Plan
        from simpleseg_training.annotate.pipeline import annotate as run
    words = [label.strip() for label in labels.split(",") if label.strip()]
    names = {"detector": detector, "segmenter": segmenter, "labels": ",".join(words)}
    names["describer"] = f"{describe} {describe_model} {marked}" if describe else "labels"
    try:
        plan = Plan(
            images,
            out,
            f"pairs.{form.value}",
            Gate(score=score, box_agreement=box_agreement),
            contours_of(convention, order, epsilon),
            pairs_per_object,
        )
        with extra("annotate"):
            parts = Parts(
                load_detector(detector, words),
                load_segmenter(segmenter),
                _describer(describe, describe_model, marked),
                names,
            )
        counts = run(plan, parts, counter("images"))
    except (ValueError, Unavailable) as error:
        raise Failure(str(error)) from error
    typer.echo(json.dumps(counts))


def _describer(url: str | None, model: str, is_marked: bool) -> "Describer":
    from simpleseg_training.annotate.describe import LabelDescriber, ModelDescriber

    if url is None:
        return LabelDescriber()
    return ModelDescriber(url, model, os.environ.get(KEY), is_marked)
