"""Rendered scene -> instruction-response pairs: every source -> target pair of the 4-tuple
[text, point, box, region] (SimpleSeg, arXiv 2601.19228, section 3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from simpleseg_polygon import prompts
from simpleseg_polygon.codec import format_box, format_point, format_region
from simpleseg_polygon.contour import region_from_mask
from simpleseg_polygon.geometry import Box, Point, Region
from simpleseg_polygon.prompts import Target
from simpleseg_training import phrases
from simpleseg_training.scenes import Rendering, box_of

EPSILON_RATIO = 0.012
MIN_EPSILON_PX = 1.2
MAX_PARTS = 4
MIN_PART_AREA_PX = 8

Source = Literal["text", "point", "box", "region", "several", "absent"]
Task = tuple[Source, Target]

TASK_WEIGHTS: dict[Task, float] = {
    ("text", "region"): 0.46,
    ("text", "box"): 0.12,
    ("text", "point"): 0.04,
    ("point", "region"): 0.05,
    ("point", "box"): 0.02,
    ("point", "text"): 0.04,
    ("box", "region"): 0.06,
    ("box", "point"): 0.01,
    ("box", "text"): 0.03,
    ("region", "box"): 0.01,
    ("region", "point"): 0.01,
    ("region", "text"): 0.02,
    ("several", "region"): 0.04,
    ("absent", "region"): 0.08,
    ("absent", "box"): 0.01,
}


@dataclass(frozen=True)
class Example:
    """One question about one image. ``mask_hw`` is the true visible area (empty if absent)."""

    task: Task
    phrase: str
    instruction: str
    answer: str
    mask_hw: NDArray[np.bool_]


def region_label(mask_hw: NDArray[np.bool_]) -> Region:
    """The sparsified contour that the model learns to write for a mask."""
    return region_from_mask(
        mask_hw,
        epsilon_ratio=EPSILON_RATIO,
        min_epsilon_px=MIN_EPSILON_PX * mask_hw.shape[0] / 128,
        min_part_area_px=MIN_PART_AREA_PX,
        max_parts=MAX_PARTS,
    )


class _Thing:
    """An object's geometry, each part made when a task first asks for it."""

    def __init__(self, mask_hw: NDArray[np.bool_]) -> None:
        self.mask_hw = mask_hw

    @cached_property
    def region(self) -> Region:
        return region_label(self.mask_hw)

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


def make_examples(
    rng: Generator,
    rendering: Rendering,
    count: int,
    weights: Mapping[Task, float] = TASK_WEIGHTS,
) -> list[Example]:
    """Up to ``count`` examples; fewer where no true phrase was found in three tries each."""
    scene = phrases.look(rendering)
    things = [_Thing(mask) for mask in rendering.masks_hw]
    tasks, odds = list(weights), np.array(list(weights.values()))
    examples: list[Example] = []
    for choice in rng.choice(len(tasks), size=3 * count, p=odds / odds.sum()):
        if len(examples) == count:
            break
        example = _make_example(rng, tasks[choice], scene, things)
        if example is not None:
            examples.append(example)
    return examples


def _make_example(
    rng: Generator, task: Task, scene: Sequence[phrases.Seen], things: Sequence[_Thing]
) -> Example | None:
    source, target = task
    if source == "absent":
        return _finish(rng, task, phrases.refer_to_none(rng, scene), None, "")
    if source == "several":
        found = phrases.refer_to_several(rng, scene)
        if found is None:
            return None
        union = np.logical_or.reduce([things[i].mask_hw for i in found[1]])
        return _finish(rng, task, found[0], _Thing(union), "")
    i = int(rng.integers(len(scene)))
    phrase = _source_phrase(rng, source, scene, i, things[i])
    full_name = phrases.name_of(scene[i].item, phrases.ALL_ATTRIBUTES)
    return None if phrase is None else _finish(rng, task, phrase, things[i], full_name)


def _source_phrase(
    rng: Generator, source: Source, scene: Sequence[phrases.Seen], i: int, thing: _Thing
) -> str | None:
    if source == "text":
        return phrases.refer(rng, scene[i], scene)
    if source == "point":
        return prompts.phrase(point=thing.random_point(rng))
    if source == "box":
        return prompts.phrase(box=thing.box)
    return prompts.phrase(region=thing.region)


def _finish(
    rng: Generator, task: Task, phrase: str, thing: _Thing | None, full_name: str
) -> Example:
    target = task[1]
    sentences = prompts.templates(target)
    # The served sentence is asked half of the time, the other templates share the rest.
    pick = 0 if rng.random() < 0.5 else int(rng.integers(len(sentences)))
    answer = _answer(target, thing, full_name)
    mask = thing.mask_hw if thing is not None else np.zeros((1, 1), bool)
    return Example(task, phrase, sentences[pick].format(phrase), answer, mask)


def _answer(target: Target, thing: _Thing | None, full_name: str) -> str:
    if thing is None:
        return "[]."
    if target == "region":
        return format_region(thing.region) + "."
    if target == "box":
        return format_box(thing.box) + "."
    if target == "point":
        return format_point(thing.inner_point) + "."
    return f"the {full_name}."


def tokenizer_corpus() -> list[str]:
    """Text that holds every word of the instructions, phrases and answers of the demo world."""
    target_sentences = [
        sentence.format(phrase)
        for target in prompts.TARGETS
        for sentence in prompts.templates(target)
        for phrase in ("the object at [0.5, 0.25]", "the red star")
    ]
    places = [
        prompts.phrase(box=Box(0, 0, 1, 1)),
        prompts.phrase(region=Region(((Point(0, 0), Point(1, 0), Point(1, 1)),))),
    ]
    words = [f" {word}" for word in phrases.vocabulary()] + phrases.vocabulary()
    roles = ["<|im_start|>user\n", "<|im_start|>assistant\n", "system\nYou are helpful."]
    return [*target_sentences, *places, *words, *roles, "the It is found at Sure, you can find it"]
