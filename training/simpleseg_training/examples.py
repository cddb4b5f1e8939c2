"""Rendered scene -> instruction-response pairs: every source -> target pair of the 4-tuple
[text, point, box, region], several objects, and absent ones."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from simpleseg_polygon import prompts
from simpleseg_polygon.geometry import Box, Point, Region
from simpleseg_training import phrases
from simpleseg_training.contours import Contours
from simpleseg_training.recombine import Example as Example
from simpleseg_training.recombine import Task as Task
from simpleseg_training.recombine import Thing, draw_tasks, place_phrase, pose
from simpleseg_training.scenes import Rendering

DEMO_CONTOURS = Contours(epsilon_ratio=0.012, max_parts=4)
"""With ``MIN_EPSILON_PX``: few vertices, since the demo model is small."""
MIN_EPSILON_PX = 1.2
"""In a picture of 128 pixels."""

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


def demo_contours(height_px: int) -> Contours:
    """How scenes of that height become labels: the tolerance grows with the picture."""
    return replace(DEMO_CONTOURS, min_epsilon_px=MIN_EPSILON_PX * height_px / 128)


def region_label(mask_hw: NDArray[np.bool_]) -> Region:
    """The sparsified contour that the demo model learns to write for a mask."""
    return demo_contours(mask_hw.shape[0]).region_of(mask_hw)


def make_examples(
    rng: Generator,
    rendering: Rendering,
    count: int,
    weights: Mapping[Task, float] = TASK_WEIGHTS,
    contours: Contours | None = None,
) -> list[Example]:
    """Up to ``count`` examples; fewer where no true phrase was found in three tries each."""
    scene = phrases.look(rendering)
    how = contours or demo_contours(rendering.image_hw3.shape[0])
    things = [Thing(mask, how) for mask in rendering.masks_hw]
    examples: list[Example] = []
    for task in draw_tasks(rng, weights, 3 * count):
        if len(examples) == count:
            break
        example = _make_example(rng, task, scene, things, how)
        if example is not None:
            examples.append(example)
    return examples


def _make_example(
    rng: Generator,
    task: Task,
    scene: Sequence[phrases.Seen],
    things: Sequence[Thing],
    contours: Contours,
) -> Example | None:
    source = task[0]
    if source == "absent":
        return pose(rng, task, phrases.refer_to_none(rng, scene), None)
    if source == "several":
        found = phrases.refer_to_several(rng, scene)
        if found is None:
            return None
        union = np.logical_or.reduce([things[i].mask_hw for i in found[1]])
        return pose(rng, task, found[0], Thing(union, contours))
    i = int(rng.integers(len(scene)))
    is_named = source == "text"
    said = phrases.refer(rng, scene[i], scene) if is_named else place_phrase(rng, source, things[i])
    full_name = phrases.name_of(scene[i].item, phrases.ALL_ATTRIBUTES)
    return None if said is None else pose(rng, task, said, things[i], f"the {full_name}")


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
