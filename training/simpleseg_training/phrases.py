"""Referring expressions: phrases that are true of exactly the objects meant, or of none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from simpleseg_polygon.geometry import Point
from simpleseg_training.scenes import COLOURS, KINDS, TEXTURES, Rendering, SceneObject
from simpleseg_training.shapes import LETTERS

Attributes = tuple[str, ...]
"""Which of size, colour, texture and kind a phrase mentions."""

_ATTRIBUTE_SETS: tuple[Attributes, ...] = (
    ("kind",),
    ("colour",),
    ("colour", "kind"),
    ("colour", "kind"),
    ("size", "kind"),
    ("size", "colour"),
    ("texture", "kind"),
    ("texture", "colour"),
    ("size", "colour", "kind"),
    ("texture", "colour", "kind"),
    ("size", "colour", "texture", "kind"),
)
ALL_ATTRIBUTES: Attributes = ("size", "colour", "texture", "kind")
_ORDINALS = ("second", "third")
_CLEAR_GAP = 0.06  # of the image's side: by how much an extreme or a relation must hold


@dataclass(frozen=True)
class Seen:
    """An object as it is visible: its centre of mass and its share of the image's area."""

    item: SceneObject
    centre: Point
    area: float


def look(rendering: Rendering) -> tuple[Seen, ...]:
    """The visible centre and area of every object."""
    return tuple(
        Seen(item, _centre(mask), float(mask.mean()))
        for item, mask in zip(rendering.scene.objects, rendering.masks_hw, strict=True)
    )


def _centre(mask_hw: NDArray[np.bool_]) -> Point:
    height, width = mask_hw.shape
    total = mask_hw.sum()
    x = (mask_hw.sum(axis=0) * (np.arange(width) + 0.5)).sum() / total
    y = (mask_hw.sum(axis=1) * (np.arange(height) + 0.5)).sum() / total
    return Point(float(x) / width, float(y) / height)


def name_of(item: SceneObject, attributes: Attributes, *, plural: bool = False) -> str:
    """The attributes in words, without an article: 'small red star', 'blue objects'."""
    words = []
    if "size" in attributes:
        words.append("large" if item.is_large else "small")
    if "colour" in attributes:
        words.append(item.colour)
    if "texture" in attributes and item.texture != "plain":
        words.append(item.texture)
    words.append(_noun(item) if "kind" in attributes else "object")
    return " ".join(words) + ("s" if plural else "")


def _noun(item: SceneObject) -> str:
    return f"letter {item.letter}" if item.kind == "letter" else item.kind


def _value(item: SceneObject, attribute: str) -> object:
    return {
        "size": item.is_large,
        "colour": item.colour,
        "texture": item.texture,
        "kind": (item.kind, item.letter),
    }[attribute]


def shares(a: SceneObject, b: SceneObject, attributes: Attributes) -> bool:
    return all(_value(a, attribute) == _value(b, attribute) for attribute in attributes)


def refer(rng: Generator, target: Seen, scene: Sequence[Seen]) -> str | None:
    """A phrase true of the target alone, or None where a few tries found none."""
    for _ in range(6):
        attributes = _ATTRIBUTE_SETS[int(rng.integers(len(_ATTRIBUTE_SETS)))]
        if "texture" in attributes and target.item.texture == "plain":
            continue
        alike = [seen for seen in scene if shares(seen.item, target.item, attributes)]
        if len(alike) == 1 and rng.random() < 0.85:
            return f"the {name_of(target.item, attributes)}"
        describe = (_by_extreme, _by_relation, _by_order)[int(rng.integers(3))]
        phrase = describe(rng, target, alike, scene, attributes)
        if phrase is not None:
            return phrase
    return None


_EXTREMES: dict[str, Callable[[Seen], float]] = {
    "leftmost": lambda seen: seen.centre.x,
    "rightmost": lambda seen: -seen.centre.x,
    "topmost": lambda seen: seen.centre.y,
    "bottom": lambda seen: -seen.centre.y,
    "largest": lambda seen: -seen.area * 3,
    "smallest": lambda seen: seen.area * 3,
}


def _by_extreme(
    rng: Generator,
    target: Seen,
    alike: Sequence[Seen],
    scene: Sequence[Seen],
    attributes: Attributes,
) -> str | None:
    """'the leftmost red star': the target is first among those alike, by a clear gap."""
    if len(alike) < 2:
        return None
    word = list(_EXTREMES)[int(rng.integers(len(_EXTREMES)))]
    key = _EXTREMES[word]
    first, second = sorted(key(seen) for seen in alike)[:2]
    if key(target) != first or second - first < _CLEAR_GAP:
        return None
    return f"the {word} {name_of(target.item, attributes)}"


_RELATIONS: dict[str, Callable[[Point, Point], float]] = {
    "left of": lambda a, b: b.x - a.x,
    "right of": lambda a, b: a.x - b.x,
    "above": lambda a, b: b.y - a.y,
    "below": lambda a, b: a.y - b.y,
}


def _by_relation(
    rng: Generator,
    target: Seen,
    alike: Sequence[Seen],
    scene: Sequence[Seen],
    attributes: Attributes,
) -> str | None:
    """'the star left of the blue cross': true of the target, clearly false of those alike."""
    landmark = scene[int(rng.integers(len(scene)))]
    by_name: Attributes = ("colour", "kind")
    if any(landmark is seen for seen in alike):
        return None
    if sum(shares(seen.item, landmark.item, by_name) for seen in scene) != 1:
        return None
    word = list(_RELATIONS)[int(rng.integers(len(_RELATIONS)))]
    holds = _RELATIONS[word]
    if holds(target.centre, landmark.centre) < _CLEAR_GAP:
        return None
    if any(holds(s.centre, landmark.centre) > -_CLEAR_GAP / 2 for s in alike if s is not target):
        return None
    return f"the {name_of(target.item, attributes)} {word} the {name_of(landmark.item, by_name)}"


def _by_order(
    rng: Generator,
    target: Seen,
    alike: Sequence[Seen],
    scene: Sequence[Seen],
    attributes: Attributes,
) -> str | None:
    """'the second star from the left', counted among those alike with clear gaps."""
    if len(alike) < 3:
        return None
    side = ("left", "right")[int(rng.integers(2))]
    sign = 1 if side == "left" else -1
    ordered = sorted(alike, key=lambda seen: sign * seen.centre.x)
    gaps = [abs(b.centre.x - a.centre.x) for a, b in zip(ordered, ordered[1:], strict=False)]
    place = ordered.index(target)
    if min(gaps) < _CLEAR_GAP or not 1 <= place <= len(_ORDINALS):
        return None
    return f"the {_ORDINALS[place - 1]} {name_of(target.item, attributes)} from the {side}"


def refer_to_several(rng: Generator, scene: Sequence[Seen]) -> tuple[str, tuple[int, ...]] | None:
    """A phrase such as 'all red objects' with the indices of the two or more objects it means."""
    anchor = scene[int(rng.integers(len(scene)))].item
    attributes: Attributes = (("colour",), ("kind",), ("colour", "kind"))[int(rng.integers(3))]
    meant = tuple(i for i, seen in enumerate(scene) if shares(seen.item, anchor, attributes))
    if len(meant) < 2:
        return None
    return f"all {name_of(anchor, attributes, plural=True)}", meant


def refer_to_none(rng: Generator, scene: Sequence[Seen]) -> str:
    """A phrase that is true of no object in the scene, often nearly true of one."""
    while True:
        kind = KINDS[int(rng.integers(len(KINDS)))]
        letter = LETTERS[int(rng.integers(len(LETTERS)))] if kind == "letter" else None
        colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
        near = scene[int(rng.integers(len(scene)))].item
        keep = rng.random()
        if keep < 0.3:
            kind, letter = near.kind, near.letter
        elif keep < 0.6:
            colour = near.colour
        noun = f"letter {letter}" if letter else kind
        if not any(
            s.item.colour == colour and (s.item.kind, s.item.letter) == (kind, letter)
            for s in scene
        ):
            return f"the {colour} {noun}"


def vocabulary() -> list[str]:
    """Every word that a phrase can hold, for building the tokenizer."""
    nouns = [*KINDS, "object", *(f"letter {letter}" for letter in LETTERS)]
    words = ["large", "small", *COLOURS, *TEXTURES, *nouns, *(f"{noun}s" for noun in nouns)]
    places = [*_EXTREMES, *_RELATIONS, *_ORDINALS, "from the left", "from the right", "all"]
    return [*words, *places]
