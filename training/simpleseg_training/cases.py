"""Evaluation questions with their truth: held-out demo scenes, or a folder of images."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from simpleseg_polygon.raster import Rle, rle_to_mask
from simpleseg_training.examples import Task, make_examples
from simpleseg_training.scenes import SPLITS, Rendering, render_scene

SAMPLES_FILE = "samples.json"


@dataclass(frozen=True)
class Case:
    """One phrase about one image. ``mask_hw`` is the true visible area, empty where the phrase is
    true of nothing in the image."""

    image_hw3: NDArray[np.uint8]
    phrase: str
    mask_hw: NDArray[np.bool_]

    @property
    def is_absent(self) -> bool:
        return not self.mask_hw.any()


@dataclass(frozen=True)
class DemoData:
    """Demo scenes with ``min_objects`` to ``max_objects`` objects and the phrases asked."""

    min_objects: int
    max_objects: int
    tasks: Mapping[Task, float]


_REFERRING: dict[Task, float] = {("text", "region"): 1.0}
_HARD: dict[Task, float] = {
    ("text", "region"): 0.7,
    ("several", "region"): 0.15,
    ("absent", "region"): 0.15,
}
DEMO_DATA = {
    "demo-single": DemoData(1, 1, _REFERRING),
    "demo-multi": DemoData(2, 3, _REFERRING),
    "demo-hard": DemoData(1, 6, _HARD),
}


def load_cases(data: str, split: str, limit: int, size_px: int) -> list[Case]:
    """The first ``limit`` cases of a demo data set (scenes drawn at ``size_px``), or of a folder
    that holds images and a ``samples.json`` list of {image, phrase, truth_rle}.

    Raises ValueError for an unknown name or split.
    """
    if data in DEMO_DATA:
        return _demo_cases(DEMO_DATA[data], split, limit, size_px)
    if (Path(data) / SAMPLES_FILE).is_file():
        return _folder_cases(Path(data))[:limit]
    names = ", ".join(DEMO_DATA)
    raise ValueError(f"no data named {data!r}: use {names} or a folder with {SAMPLES_FILE}")


def _demo_cases(data: DemoData, split: str, limit: int, size_px: int) -> list[Case]:
    if split not in SPLITS:
        raise ValueError(f"no split named {split!r}: use {', '.join(SPLITS)}")
    cases: list[Case] = []
    for seed in SPLITS[split]:
        if len(cases) >= limit:
            break
        rendering = render_scene(seed, data.min_objects, data.max_objects, size_px)
        if len(rendering.masks_hw) >= data.min_objects:
            cases += _ask(np.random.default_rng((seed, 2)), rendering, data.tasks)
    return cases


def _ask(rng: Generator, rendering: Rendering, tasks: Mapping[Task, float]) -> list[Case]:
    image = rendering.image_hw3
    return [
        Case(image, example.phrase, np.broadcast_to(example.mask_hw, image.shape[:2]))
        for example in make_examples(rng, rendering, 1, tasks)
    ]


def _folder_cases(folder: Path) -> list[Case]:
    samples: list[dict[str, Any]] = json.loads((folder / SAMPLES_FILE).read_text())
    return [
        Case(
            np.asarray(Image.open(folder / sample["image"]).convert("RGB")),
            sample["phrase"],
            rle_to_mask(Rle.from_coco(sample["truth_rle"])),
        )
        for sample in samples
    ]
