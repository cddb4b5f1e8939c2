"""`simpleseg annotate`: photographs become instruction pairs."""

import json
import os
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simpleseg.batch import BatchError
from simpleseg.batch.stored import is_stored, stored
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
from simpleseg.store import Store, is_url

if TYPE_CHECKING:
    from simpleseg_training.annotate.parts import Describer
    from simpleseg_training.annotate.picture import Picture
    from simpleseg_training.annotate.pipeline import Parts, Plan

KEY = "SIMPLESEG_DESCRIBE_KEY"
SHARDS = "shards"
"""In the output's folder, with --ray: what was done to each image."""
PAIRS = "pairs"


class Form(StrEnum):
    """Of the pairs."""

    jsonl = "jsonl"
    parquet = "parquet"
    tar = "tar"


def annotate(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="A folder of photographs, or the path or URL of .tar or .parquet files.",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--output", "-o", help="A folder, with --ray also its URL; a stopped run goes on."
        ),
    ],
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
    form: Annotated[
        Form | None,
        typer.Option(
            help="Of the pairs; tar is WebDataset, which holds the images.",
            show_default="jsonl; tar where INPUT or the output is no folder here",
        ),
    ] = None,
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
    worker_gpus: Annotated[
        float, typer.Option(min=0, help="With --ray: GPUs of each worker; 0.5 is a shared one.")
    ] = 0,
    shard_size: ShardSizeOption = 128,
) -> None:
    """Detect, segment, outline, describe, filter: photographs become instruction pairs.

    The folder gets the pairs, contact-sheet.html to look at the first of them, and counts.json,
    which is printed last: what each filter removed.
    """
    if is_url(out) and not ray:
        raise Failure(f"{out}: without --ray the output is a folder here, no URL", status=2)
    pairs = f"{PAIRS}.{_form(form, source, out)}"
    with extra("annotate"):
        from simpleseg_training.annotate.describe import Unavailable
        from simpleseg_training.annotate.gate import Gate
        from simpleseg_training.annotate.pipeline import Plan
        from simpleseg_training.annotate.pipeline import annotate as run
    words = [label.strip() for label in labels.split(",") if label.strip()]
    models = _Models(detector, segmenter, words, describe, describe_model, marked)
    gate = Gate(score=score, box_agreement=box_agreement)
    try:
        with extra("ray" if ray else "annotate"), _filled(out) as folder:
            pictures = _pictures(source)
            contours = contours_of(convention, order, epsilon)
            plan = Plan(folder, pairs, gate, contours, pairs_per_object)
            if ray:
                on_ray = _OnRay(Shards(f"{out}/{SHARDS}"), shard_size, workers, worker_gpus)
                counts = on_ray.run(plan, pictures, models)
            else:
                counts = run(plan, pictures, models.load(), counter("images"))
    except (
        ValueError,
        ImportError,  # of fsspec, which says what a scheme needs
        BatchError,
        Unavailable,
        WorkerError,
        ForeignShardsError,
    ) as error:
        raise Failure(str(error)) from error
    typer.echo(json.dumps(counts))


def _form(asked: Form | None, source: str, out: str) -> Form:
    """Raises Failure for one that names images by paths, where there are none from the output."""
    if not (is_stored(source) or is_url(out)):
        return asked or Form.jsonl
    if asked not in (None, Form.tar):
        raise Failure(
            f"--form {asked}: such pairs name images by their paths from one folder to another; "
            f"here only --form tar, which holds the images, can be written",
            status=2,
        )
    return Form.tar


def _pictures(source: str) -> "list[Picture]":
    """Raises ValueError or BatchError where there are none, and where two have the same name."""
    from simpleseg_training.annotate.picture import SUFFIXES, Picture, pictures_in

    if is_url(source) and not is_stored(source):
        raise ValueError(f"{source}: what is read from a URL ends in .tar or .parquet")
    if not is_stored(source):
        return pictures_in(Path(source).absolute())  # workers may be in another folder
    found = [Picture(one.name, one.image) for one in stored(source, SUFFIXES)]
    for name, times in Counter(picture.name for picture in found).most_common(1):
        if times > 1:
            raise ValueError(f"{source}: there are {times} pictures of the name {name!r}")
    if not found:
        raise ValueError(f"no pictures in {source}")
    return found


@contextmanager
def _filled(out: str) -> Generator[Path]:
    """The folder for what is made at the end; where ``out`` is a URL, it is put there then."""
    if not is_url(out):
        yield Path(out)
        return
    with TemporaryDirectory() as name:
        yield Path(name)
        store = Store(out)
        made = sorted(Path(name).iterdir())
        for path in made:
            store.copy(path)
        for left in store.names(f"{PAIRS}-{'[0-9]' * 6}.tar") - {path.name for path in made}:
            store.remove(left)  # of a run with more pairs: readers take every file that matches


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


@dataclass(frozen=True)
class _OnRay:
    """Images done by workers, then pairs by this process."""

    shards: Shards
    shard_size: int
    workers: int
    gpus: float

    def run(self, plan: "Plan", pictures: "Sequence[Picture]", models: _Models) -> dict[str, Any]:
        """The counts. An image that ends its worker again and again is quarantined."""
        from simpleseg_training.annotate.pipeline import QUARANTINED, settings, write

        def make() -> Work:
            from simpleseg_training.annotate.pipeline import annotated

            parts = models.load()
            return lambda some: [{"image": p.name, **annotated(plan, parts, p)} for p in some]

        def died(picture: "Picture") -> Line:
            return {"image": picture.name, "fault": QUARANTINED}

        asked = json.dumps(settings(plan, models.names))
        blocks = cut(pictures, lambda picture: f"{asked} {picture.name}", self.shard_size)
        left = self.shards.missing(blocks)
        done = len(pictures) - sum(len(block.items) for block in left)
        progress = counter("images")
        on = spread(left, self.shards, make, died, workers=self.workers, gpus=self.gpus)
        for block in on:
            for _ in block.items:
                done += 1
                progress(done, len(pictures))
        entries = (
            pair
            for block in blocks
            for pair in zip(block.items, self.shards.read(block.name), strict=True)
        )
        return write(plan, list(entries))
