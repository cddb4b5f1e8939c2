"""Evaluation questions with their truth: of drawn scenes, and of data sets in files."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.random import Generator

from simpleseg_training.case import Case as Case
from simpleseg_training.data_sets import SAMPLES_FILE as SAMPLES_FILE
from simpleseg_training.data_sets import file_cases
from simpleseg_training.examples import Task, make_examples
from simpleseg_training.scenes import SPLITS, Rendering, render_scene
from simpleseg_training.stress import STRESS, stress_cases


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
    """The first ``limit`` cases of a demo data set (scenes drawn at ``size_px``), of drawings of
    another style (``demo-stress:FOLDER``), or of a data set in files (``data_sets.py``).

    Raises ValueError for an unknown name or split.
    """
    if data in DEMO_DATA:
        return _demo_cases(DEMO_DATA[data], split, limit, size_px)
    kind, _, place = data.partition(":")
    if kind == STRESS and place:
        return list(islice(stress_cases(Path(place)), limit))
    cases = list(islice(file_cases(data, split), limit))
    if not cases:
        raise ValueError(f"{data} holds no cases")
    return cases


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
