"""[text, point, box, region] of one object -> instruction-response pairs: any source leads to any
target (SimpleSeg, arXiv 2601.19228, section 3). The drawn scenes, RefCOCO and the annotation
pipeline all make their pairs here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from simpleseg_polygon import prompts
from simpleseg_polygon.codec import format_box, format_point, format_region
from simpleseg_polygon.geometry import Box, Point, Region
from simpleseg_polygon.prompts import Target
from simpleseg_training.contours import Contours

Source = Literal["text", "point", "box", "region", "several", "absent"]
Task = tuple[Source, Target]

REFERRING_WEIGHTS: dict[Task, float] = {
    ("text", "region"): 0.5,
    ("text", "box"): 0.12,
    ("text", "point"): 0.05,
    ("point", "region"): 0.1,
    ("point", "text"): 0.04,
    ("box", "region"): 0.1,
    ("box", "text"): 0.04,
    ("region", "text"): 0.03,
    ("region", "box"): 0.02,
}
"""Shares of the tasks in pairs made of phrases and masks."""


@dataclass(frozen=True)
class Example:
    """One question about one image. ``mask_hw`` is the true visible area (empty if absent)."""

    task: Task
    phrase: str
    instruction: str
    answer: str
    mask_hw: NDArray[np.bool_]


class Thing:
    """An object's geometry, each part made when a task first asks for it."""

    def __init__(self, mask_hw: NDArray[np.bool_], contours: Contours) -> None:
        self.mask_hw = mask_hw
        self._contours = contours

    def region(self, rng: Generator) -> Region:
        if self._contours.order == "unordered":
            return self._contours.region_of(self.mask_hw, rng)
        return self._region

    @cached_property
    def _region(self) -> Region:
        return self._contours.region_of(self.mask_hw)

    @cached_property
    def box(self) -> Box:
        return box_of(self.mask_hw)

    @cached_property
    def inner_point(self) -> Point:
        """The middle of the longest horizontal run of the mask: well inside, and unique."""
        height, width = self.mask_hw.shape
        padded = np.pad(self.mask_hw, ((0, 0), (1, 1))).astype(np.int8).ravel()
        edges = np.flatnonzero(np.diff(padded))
        starts, ends = edges[::2], edges[1::2]
        longest = int(np.argmax(ends - starts))
        row, column = divmod(int(starts[longest]), width + 2)
        return Point((column + (ends[longest] - starts[longest]) / 2) / width, (row + 0.5) / height)

    def random_point(self, rng: Generator) -> Point:
        ys, xs = np.nonzero(self.mask_hw)
        i = int(rng.integers(len(ys)))
        height, width = self.mask_hw.shape
        return Point((xs[i] + 0.5) / width, (ys[i] + 0.5) / height)


def box_of(mask_hw: NDArray[np.bool_]) -> Box:
    """The box around a mask along pixel edges, normalised."""
    height, width = mask_hw.shape
    ys, xs = np.flatnonzero(mask_hw.any(axis=1)), np.flatnonzero(mask_hw.any(axis=0))
    return Box(xs[0] / width, ys[0] / height, (xs[-1] + 1) / width, (ys[-1] + 1) / height)


def place_phrase(rng: Generator, source: Source, thing: Thing) -> str:
    """The noun phrase that names an object by its point, box or region."""
    if source == "point":
        return prompts.phrase(point=thing.random_point(rng))
    if source == "box":
        return prompts.phrase(box=thing.box)
    return prompts.phrase(region=thing.region(rng))


def pose(rng: Generator, task: Task, phrase: str, thing: Thing | None, name: str = "") -> Example:
    """The question of ``task`` about what ``phrase`` names; ``thing`` is None for what is absent,
    ``name`` answers a question for text."""
    target = task[1]
    sentences = prompts.templates(target)
    # The served sentence is asked half of the time, the other templates share the rest.
    pick = 0 if rng.random() < 0.5 else int(rng.integers(len(sentences)))
    answer = _answer(rng, target, thing, name)
    mask = thing.mask_hw if thing is not None else np.zeros((1, 1), bool)
    return Example(task, phrase, sentences[pick].format(phrase), answer, mask)


def _answer(rng: Generator, target: Target, thing: Thing | None, name: str) -> str:
    if thing is None:
        return "[]."
    if target == "region":
        return format_region(thing.region(rng)) + "."
    if target == "box":
        return format_box(thing.box) + "."
    if target == "point":
        return format_point(thing.inner_point) + "."
    return f"{name}."


def draw_tasks(rng: Generator, weights: Mapping[Task, float], count: int) -> Iterator[Task]:
    """``count`` tasks, each with its weight's share of the draws."""
    tasks, odds = list(weights), np.array(list(weights.values()))
    for choice in rng.choice(len(tasks), size=count, p=odds / odds.sum()):
        yield tasks[choice]


def recombine(
    rng: Generator,
    thing: Thing,
    phrases: Sequence[str],
    count: int,
    weights: Mapping[Task, float] = REFERRING_WEIGHTS,
) -> list[Example]:
    """``count`` different pairs about an object that each of ``phrases`` names, fewer where there
    are not so many. Raises ValueError without a phrase."""
    if not phrases:
        raise ValueError("an object needs a phrase")
    made: dict[tuple[str, str], Example] = {}
    for task in draw_tasks(rng, weights, 4 * count):
        if len(made) == count:
            break
        name = phrases[int(rng.integers(len(phrases)))]
        said = name if task[0] == "text" else place_phrase(rng, task[0], thing)
        example = pose(rng, task, said, thing, name)
        made.setdefault((example.instruction, example.answer), example)
    return list(made.values())
