"""`simpleseg annotate`: photographs become instruction pairs."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from simpleseg.cli_support import Failure, RayOption, WorkersOption, extra
from simpleseg.spread import Died, Work, WorkerError, spread

if TYPE_CHECKING:
    from simpleseg_training.annotate.parts import Describer
    from simpleseg_training.annotate.pipeline import Entries, Parts, Plan

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
    ray: RayOption = False,
    workers: WorkersOption = 2,
) -> None:
    """Detect, segment, outline, describe, filter: photographs become instruction pairs.

    The folder gets the pairs, contact-sheet.html to look at them, and counts.json, which is printed
    last: what each filter removed.
    """
    with extra("annotate"):
        from simpleseg_training.annotate.describe import Unavailable
        from simpleseg_training.annotate.gate import Gate
        from simpleseg_training.annotate.pipeline import Plan, annotate_by
        from simpleseg_training.annotate.pipeline import annotate as run
    words = [label.strip() for label in labels.split(",") if label.strip()]
    models = _Models(detector, segmenter, words, describe, describe_model, marked)
    try:
        plan = Plan(
            images,
            out,
            f"pairs.{form.value}",
            Gate(score=score, box_agreement=box_agreement),
            contours_of(convention, order, epsilon),
            pairs_per_object,
        )
        with extra("ray" if ray else "annotate"):
            if ray:
                spread_out = _spread_out(plan, models, workers)
                counts = annotate_by(plan, models.names, spread_out, counter("images"))
            else:
                counts = run(plan, models.load(), counter("images"))
    except (ValueError, Unavailable, WorkerError) as error:
        raise Failure(str(error)) from error
    typer.echo(json.dumps(counts))


@dataclass(frozen=True)
class _Models:
    """What was said of the parts; they are loaded where they run."""

    detector: str
    segmenter: str
    labels: list[str]
    describe: str | None
    describe_model: str
    marked: bool

    @property
    def names(self) -> dict[str, str]:
        """What a run that goes on must have again."""
        url = self.describe
        return {
            "detector": self.detector,
            "segmenter": self.segmenter,
            "labels": ",".join(self.labels),
            "describer": f"{url} {self.describe_model} {self.marked}" if url else "labels",
        }

    def load(self) -> "Parts":
        """Raises ValueError where a name means nothing."""
        from simpleseg_training.annotate.parts import load_detector, load_segmenter
        from simpleseg_training.annotate.pipeline import Parts

        detector = load_detector(self.detector, self.labels)
        return Parts(detector, load_segmenter(self.segmenter), self._describer(), self.names)

    def _describer(self) -> "Describer":
        from simpleseg_training.annotate.describe import LabelDescriber, ModelDescriber

        if self.describe is None:
            return LabelDescriber()
        return ModelDescriber(self.describe, self.describe_model, os.environ.get(KEY), self.marked)


def _spread_out(plan: "Plan", models: _Models, workers: int) -> "Entries":
    """Images done by workers on Ray; one that ends its worker again and again is quarantined."""
    from simpleseg_training.annotate.pipeline import QUARANTINED

    def make() -> Work:
        from simpleseg_training.annotate.pipeline import annotated

        parts = models.load()
        return lambda names: [annotated(plan, parts, name) for name in names]

    def entries(names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, entry in spread(names, make, workers=workers):
            yield name, {"fault": QUARANTINED} if isinstance(entry, Died) else entry

    return entries
