"""`simpleseg annotate`: photographs become instruction pairs."""

import json
import os
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
from simpleseg.cli_support import Failure, RayOption, ShardSizeOption, WorkersOption, extra
from simpleseg.shards import ForeignShardsError, Line, Shards, cut
from simpleseg.spread import Work, WorkerError, spread

if TYPE_CHECKING:
    from simpleseg_training.annotate.parts import Describer
    from simpleseg_training.annotate.pipeline import Parts, Plan

KEY = "SIMPLESEG_DESCRIBE_KEY"
SHARDS = "shards"
"""In the output's folder, with --ray: what was done to each image."""


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
    shard_size: ShardSizeOption = 128,
) -> None:
    """Detect, segment, outline, describe, filter: photographs become instruction pairs.

    The folder gets the pairs, contact-sheet.html to look at them, and counts.json, which is printed
    last: what each filter removed.
    """
    with extra("annotate"):
        from simpleseg_training.annotate.describe import Unavailable
        from simpleseg_training.annotate.gate import Gate
        from simpleseg_training.annotate.pipeline import Plan
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
                counts = _on_ray(plan, models, workers, shard_size)
            else:
                counts = run(plan, models.load(), counter("images"))
    except (ValueError, Unavailable, WorkerError, ForeignShardsError) as error:
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


def _on_ray(plan: "Plan", models: _Models, workers: int, shard_size: int) -> dict[str, Any]:
    """Images done by workers, then pairs by this process; the counts. An image that ends its worker
    again and again is quarantined."""
    from simpleseg_training.annotate.pipeline import QUARANTINED, image_names, settings, write

    def make() -> Work:
        from simpleseg_training.annotate.pipeline import annotated

        parts = models.load()
        return lambda names: [{"image": name, **annotated(plan, parts, name)} for name in names]

    def died(name: str) -> Line:
        return {"image": name, "fault": QUARANTINED}

    names, asked = image_names(plan.images), json.dumps(settings(plan, models.names))
    shards = Shards(str(plan.out / SHARDS))
    blocks = cut(names, lambda name: f"{asked} {name}", shard_size)
    left = shards.missing(blocks)
    done = len(names) - sum(len(block.items) for block in left)
    progress = counter("images")
    for block in spread(left, shards, make, died, workers=workers):
        done += len(block.items)
        progress(done, len(names))
    entries = (entry for block in blocks for entry in shards.read(block.name))
    return write(plan, [(entry["image"], entry) for entry in entries])
