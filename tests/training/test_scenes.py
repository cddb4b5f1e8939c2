"""Scenes are functions of their seed, and phrases are true of exactly what they mean."""

import numpy as np
import pytest

from simpleseg_polygon.codec import parse_region
from simpleseg_polygon.geometry import ImageSize
from simpleseg_polygon.metrics import iou
from simpleseg_polygon.raster import region_to_mask
from simpleseg_training import phrases
from simpleseg_training.examples import TASK_WEIGHTS, make_examples, region_label
from simpleseg_training.recombine import box_of
from simpleseg_training.scenes import COLOURS, SPLITS, render_scene


def test_same_seed_same_scene() -> None:
    first, second = (render_scene(7, 1, 6, 128) for _ in range(2))
    assert np.array_equal(first.image_hw3, second.image_hw3)
    assert all(map(np.array_equal, first.masks_hw, second.masks_hw))


def test_splits_never_meet() -> None:
    ranges = sorted(SPLITS.values(), key=lambda seeds: seeds.start)
    assert all(a.stop <= b.start for a, b in zip(ranges, ranges[1:], strict=False))


def test_scene_looks_the_same_at_another_size() -> None:
    for seed in range(20):
        small, large = (render_scene(seed, 1, 1, px) for px in (128, 512))
        a, b = box_of(small.masks_hw[0]), box_of(large.masks_hw[0])
        assert max(abs(x - y) for x, y in zip(a, b, strict=True)) < 0.03


def test_masks_do_not_overlap() -> None:
    for seed in range(50):
        masks = np.stack(render_scene(seed, 4, 6, 128).masks_hw)
        assert masks.sum(axis=0).max() <= 1


def test_labels_describe_their_masks() -> None:
    ious = []
    for seed in range(60):
        for mask in render_scene(seed, 1, 3, 128).masks_hw:
            ious.append(iou(region_to_mask(region_label(mask), ImageSize(128, 128)), mask))
    assert np.mean(ious) > 0.92


@pytest.mark.parametrize("task", TASK_WEIGHTS)
def test_every_task_has_examples(task: tuple[str, str]) -> None:
    for seed in range(80):
        rng = np.random.default_rng(seed)
        examples = make_examples(rng, render_scene(seed, 3, 6, 128), 1, {task: 1.0})  # type: ignore[dict-item]
        if examples:
            assert examples[0].task == task
            assert examples[0].answer.endswith(".")
            return
    pytest.fail("no example in 80 scenes")


def test_region_answers_parse_to_the_object() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        rendering = render_scene(seed, 1, 3, 128)
        for example in make_examples(rng, rendering, 2, {("text", "region"): 1.0}):
            parsed = parse_region(example.answer)
            assert parsed.status == "ok"
            assert iou(region_to_mask(parsed.value, ImageSize(128, 128)), example.mask_hw) > 0.6


def _means(phrase: str, seen: phrases.Seen) -> bool:
    """Whether a phrase of attributes alone ('the small red star') is true of an object."""
    item = seen.item
    noun = f"letter {item.letter}" if item.letter else item.kind
    words = phrase.removeprefix("the ")
    for attribute, text in (
        ("large" if item.is_large else "small", ("large", "small")),
        (item.texture, ("plain", "striped", "dotted")),
    ):
        said = [word for word in text if word in words.split()]
        if said and said != [attribute]:
            return False
    colours = [word for word in words.split() if word in COLOURS]
    named = words.split("letter ")[-1] if "letter" in words else words.split()[-1]
    right_noun = named in ("object", noun, item.letter or noun) and (
        "letter" not in words or item.letter is not None
    )
    return right_noun and (not colours or colours == [item.colour])


def test_plain_phrases_are_true_of_one_object_only() -> None:
    checked = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        scene = phrases.look(render_scene(seed, 2, 6, 128))
        target = scene[int(rng.integers(len(scene)))]
        phrase = phrases.refer(rng, target, scene)
        special = (*phrases._EXTREMES, *phrases._RELATIONS, *phrases._ORDINALS)
        if phrase is None or any(word in phrase for word in special):
            continue
        assert [seen for seen in scene if _means(phrase, seen)] == [target], phrase
        checked += 1
    assert checked > 80


def test_absent_phrases_are_true_of_nothing() -> None:
    for seed in range(100):
        scene = phrases.look(render_scene(seed, 1, 6, 128))
        phrase = phrases.refer_to_none(np.random.default_rng(seed), scene)
        assert not any(_means(phrase, seen) for seen in scene), phrase
