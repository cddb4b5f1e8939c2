"""Sources of instruction pairs for fine-tuning: drawn scenes, and files of pairs.

A file holds one record a line (JSONL) or a row (Parquet):

    {"image": path, "instruction": str, "answer": str, "task": [source, target], "id": str}

``image`` is relative to the file's folder. ``task`` and ``id`` may be missing; ``truth_rle``, a
COCO run-length encoding, is the truth for rewards and evaluation where there is more to it than
what the answer says.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image, ImageOps

from simpleseg_polygon.codec import Target, format_box, parse_region
from simpleseg_polygon.geometry import ImageSize
from simpleseg_polygon.prompts import instruction, match_instruction
from simpleseg_polygon.raster import Rle, region_to_rle
from simpleseg_polygon.rle import mask_to_rle
from simpleseg_training.cases import DEMO_DATA, Case, load_cases
from simpleseg_training.examples import TASK_WEIGHTS, Example, Task, demo_contours, make_examples
from simpleseg_training.recombine import box_of
from simpleseg_training.scenes import SPLITS, render_scene
from simpleseg_training.train_config import DataConfig

Located = Literal["region", "box"]

DEMO = "demo"
DEMO_PX = 128
_REQUIRED = ("image", "instruction", "answer")


@dataclass(frozen=True)
class Truth:
    """What an answer is measured by: the visible area for regions, the text for anything else."""

    target: Target
    mask: Rle
    answer: str


@dataclass(frozen=True)
class Pair:
    """An instruction about an image, and the answer to learn."""

    image: Image.Image
    instruction: str
    answer: str
    target: Target
    truth: Truth | None
    """None where the answer does not say where something is."""


class Pairs(Protocol):
    """Pairs by number, made when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Pair: ...


class DemoPairs:
    """One question about each of ``limit`` training scenes."""

    def __init__(self, config: DataConfig) -> None:
        if config.limit is None:
            raise ValueError("data: drawn scenes have no end; give them a limit")
        self._count = config.limit
        self._objects = config.objects
        self._first = SPLITS["train"].start + config.first_scene
        self._contours = replace(demo_contours(DEMO_PX), order=config.order)
        targets = config.targets
        self._tasks: dict[Task, float] = {
            task: weight * config.weights.get(task[0], 1.0)
            for task, weight in TASK_WEIGHTS.items()
            if targets is None or task[1] in targets
        }

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int, /) -> Pair:
        if not 0 <= index < self._count:
            raise IndexError(index)
        seed = self._first + index
        rng = np.random.default_rng((seed, 3))
        rendering = render_scene(seed, *self._objects, DEMO_PX)
        while not (made := make_examples(rng, rendering, 1, self._tasks, self._contours)):
            pass  # no true phrase in three tries: three more
        return _pair_of_example(Image.fromarray(rendering.image_hw3), made[0])


def _pair_of_example(image: Image.Image, example: Example) -> Pair:
    target = example.task[1]
    mask = np.broadcast_to(example.mask_hw, (image.height, image.width))
    truth = Truth(target, mask_to_rle(mask), example.answer)
    return Pair(
        image, example.instruction, example.answer, target, truth if target != "text" else None
    )


class FilePairs:
    """The records of a JSONL or Parquet file, read as they are asked for."""

    def __init__(self, path: Path, config: DataConfig) -> None:
        if config.order != "clockwise":
            raise ValueError(f"data: {path} has its answers in the order that they have")
        self._folder = path.parent
        self._records = _read(path)
        missing = [name for name in _REQUIRED if name not in self._records.column_names]
        if missing:
            raise ValueError(f"{path}: no {', '.join(missing)} in its records")
        if config.targets is not None:
            wanted = set(config.targets)
            self._records = self._records.filter(lambda record: target_of(record) in wanted)
        if config.limit is not None:
            self._records = self._records.take(min(config.limit, len(self._records)))
        if not len(self._records):
            raise ValueError(f"{path}: holds no pair that is asked for")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int, /) -> Pair:
        record: dict[str, Any] = self._records[index]
        with Image.open(self._folder / record["image"]) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
        target = target_of(record)
        truth = _truth_of(record, target, ImageSize(image.height, image.width))
        return Pair(image, record["instruction"], record["answer"], target, truth)


def _read(path: Path) -> Any:
    from datasets import Dataset  # which maps a file of any length into memory

    if not path.is_file():
        raise ValueError(f"no data {str(path)!r}: {DEMO}, or a JSONL or Parquet file")
    read = Dataset.from_parquet if path.suffix == ".parquet" else Dataset.from_json
    return read(str(path))


def target_of(record: dict[str, Any]) -> Target:
    """What a record asks for: its task says, or else its instruction, or else it is a text."""
    if record.get("task"):
        target: Target = record["task"][-1]
        return target
    known = match_instruction(record["instruction"])
    return "text" if known is None else known[0]


def _truth_of(record: dict[str, Any], target: Target, size: ImageSize) -> Truth | None:
    if target == "text":
        return None
    if record.get("truth_rle"):
        mask = Rle.from_coco(record["truth_rle"])
    else:
        mask = region_to_rle(parse_region(record["answer"]).value, size)
    return Truth(target, mask, record["answer"])


@dataclass(frozen=True)
class Joined:
    """Sources one after the other."""

    sources: Sequence[Pairs]

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def __getitem__(self, index: int, /) -> Pair:
        for source in self.sources:
            if index < len(source):
                return source[index]
            index -= len(source)
        raise IndexError(index)


def open_pairs(configs: Sequence[DataConfig]) -> Pairs:
    """All sources together. Raises ValueError where one cannot be had."""
    return Joined([_open(config) for config in configs])


def _open(config: DataConfig) -> Pairs:
    return DemoPairs(config) if config.source == DEMO else FilePairs(Path(config.source), config)


def held_out(data: str, cases: int, split: str = "val", target: Located = "region") -> list[Pair]:
    """Questions for regions, or boxes, to watch a run by: scenes of a demo data set's split, or the
    first pairs of a file that ask for such."""
    if data in DEMO_DATA:
        return [_pair_of_case(case, target) for case in load_cases(data, split, cases, DEMO_PX)]
    source = FilePairs(Path(data), DataConfig(source=data, limit=cases, targets=[target]))
    return [source[i] for i in range(len(source))]


def _pair_of_case(case: Case, target: Located) -> Pair:
    box = "[]" if case.is_absent else format_box(box_of(case.mask_hw))
    truth = Truth(target, mask_to_rle(case.mask_hw), box if target == "box" else "")
    asked = instruction(target, case.phrase)
    return Pair(Image.fromarray(case.image_hw3), asked, truth.answer, target, truth)
