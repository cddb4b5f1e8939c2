"""Procedural scenes: a seed gives a scene, a scene renders at any size.

A scene is a background and one to six objects (shapes, letters, blobs, thin and curved things) with
colour, texture and size, drawn back to front. Train, validation and test scenes come from seed
ranges that never meet (``SPLITS``).
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from simpleseg_polygon.geometry import Point
from simpleseg_training.shapes import LETTERS, SHAPES, Outline, outline_of

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 40),
    "green": (50, 160, 60),
    "blue": (45, 80, 210),
    "yellow": (235, 210, 50),
    "orange": (240, 135, 30),
    "purple": (130, 60, 170),
    "pink": (245, 140, 180),
    "cyan": (60, 200, 215),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
    "brown": (120, 75, 40),
    "gray": (130, 130, 130),
}
TEXTURES = ("plain", "striped", "dotted")
KINDS = (*SHAPES, "letter")

SPLITS: dict[str, range] = {
    "train": range(1_000_000, 2**62),
    "val": range(500_000, 1_000_000),
    "test": range(500_000),
}

_MIN_VISIBLE = 0.5  # an object of which less is seen is not in a scene
_MIN_COLOUR_CONTRAST = 110  # summed over the three channels, object against background


@dataclass(frozen=True)
class SceneObject:
    """One object; coordinates and radius are in units of the image's side."""

    kind: str
    letter: str | None
    colour: str
    texture: str
    is_large: bool
    centre: Point
    radius: float
    outline: Outline
    paint: tuple[float, float, float]
    texture_angle: float
    texture_period: float


@dataclass(frozen=True)
class Scene:
    """What a seed stands for; ``objects`` are in drawing order, the last one in front."""

    seed: int
    objects: tuple[SceneObject, ...]
    background: NDArray[np.float32]
    """A small RGB grid, enlarged smoothly to the image size; 1x1 is one flat colour."""
    noise: float
    """Standard deviation of the grain, in grey levels."""


@dataclass(frozen=True)
class Rendering:
    """``image_hw3`` is uint8 RGB; ``masks_hw`` holds the visible pixels of each object, bool."""

    scene: Scene
    image_hw3: NDArray[np.uint8]
    masks_hw: tuple[NDArray[np.bool_], ...]


def render_scene(seed: int, min_objects: int, max_objects: int, size_px: int) -> Rendering:
    """The scene of a seed, drawn at ``size_px`` x ``size_px``; the same seed gives the same scene.

    Scenes in which an object is mostly hidden are drawn again from the next part of the seed's
    random stream.
    """
    rng = np.random.default_rng(seed)
    while True:
        scene = _sample_scene(rng, seed, int(rng.integers(min_objects, max_objects + 1)))
        rendering = _draw(scene, size_px)
        if rendering is not None:
            return rendering


def _sample_scene(rng: Generator, seed: int, count: int) -> Scene:
    background = _sample_background(rng)
    objects: list[SceneObject] = []
    for _ in range(count):
        placed = _sample_object(rng, background.reshape(-1, 3).mean(axis=0), objects, count)
        if placed is not None:
            objects.append(placed)
    noise = float(rng.uniform(1, 9)) if rng.random() < 0.5 else 0.0
    return Scene(seed, tuple(objects), background, noise)


def _sample_background(rng: Generator) -> NDArray[np.float32]:
    """One flat colour, a gradient between four corners, or soft noise."""
    colour = rng.uniform(0, 255, 3)
    draw = rng.random()
    if draw < 0.35:
        grid = colour.reshape(1, 1, 3)
    elif draw < 0.65:
        grid = colour + rng.uniform(-90, 90, (2, 2, 3))
    else:
        cells = int(rng.integers(4, 24))
        grid = colour + rng.normal(0, rng.uniform(8, 40), (cells, cells, 3))
    return grid.clip(0, 255).astype(np.float32)


def _sample_object(
    rng: Generator, backdrop: NDArray[np.float32], others: list[SceneObject], count: int
) -> SceneObject | None:
    kind = KINDS[int(rng.integers(len(KINDS)))]
    letter = LETTERS[int(rng.integers(len(LETTERS)))] if kind == "letter" else None
    is_large = bool(rng.random() < 0.5)
    radius = float(rng.uniform(0.18, 0.27) if is_large else rng.uniform(0.09, 0.13))
    if is_large and count <= 2 and rng.random() < 0.3:
        radius = float(rng.uniform(0.27, 0.38))
    centre = _find_place(rng, radius, others)
    if centre is None:
        return None
    colour = _contrasting_colour(rng, backdrop)
    texture = TEXTURES[int(rng.choice(3, p=(0.7, 0.15, 0.15)))]
    paint = (np.array(COLOURS[colour]) + rng.normal(0, 9, 3)).clip(0, 255)
    return SceneObject(
        kind,
        letter,
        colour,
        texture,
        is_large,
        centre,
        radius,
        outline_of(kind, letter, rng).scaled(radius, centre),
        (float(paint[0]), float(paint[1]), float(paint[2])),
        float(rng.uniform(0, math.pi)),
        float(rng.uniform(0.035, 0.06)),
    )


def _find_place(rng: Generator, radius: float, others: list[SceneObject]) -> Point | None:
    """A centre that keeps the object in the picture and off the middle of the others."""
    margin = min(radius, 0.5) * (0.7 if rng.random() < 0.1 else 1.0)
    for _ in range(12):
        x, y = (float(v) for v in rng.uniform(margin, 1 - margin, 2))
        if all(
            math.hypot(x - o.centre.x, y - o.centre.y)
            > 0.85 * max(radius, o.radius) + 0.45 * min(radius, o.radius)
            for o in others
        ):
            return Point(x, y)
    return None


def _contrasting_colour(rng: Generator, backdrop: NDArray[np.float32]) -> str:
    names = list(COLOURS)
    for _ in range(8):
        name = names[int(rng.integers(len(names)))]
        if np.abs(np.array(COLOURS[name]) - backdrop).sum() > _MIN_COLOUR_CONTRAST:
            break
    return name


def _draw(scene: Scene, size_px: int) -> Rendering | None:
    """Paint back to front; None where an object ends up mostly hidden or out of the picture."""
    image = _enlarge(scene.background, size_px)
    masks: list[NDArray[np.bool_]] = []
    areas: list[int] = []
    for item in scene.objects:
        coverage = item.outline.coverage(size_px)
        _paint(image, item, coverage)
        mask = coverage > 127
        for lower in masks:
            np.logical_and(lower, ~mask, out=lower)
        masks.append(mask)
        areas.append(int(mask.sum()))
    if not masks or any(
        int(mask.sum()) < max(_MIN_VISIBLE * area, 24)
        for mask, area in zip(masks, areas, strict=True)
    ):
        return None
    if scene.noise:
        rng = np.random.default_rng(scene.seed)
        image += rng.normal(0, scene.noise, (size_px, size_px, 1)).astype(np.float32)
    return Rendering(scene, image.clip(0, 255).astype(np.uint8), tuple(masks))


def _enlarge(background: NDArray[np.float32], size_px: int) -> NDArray[np.float32]:
    if background.shape[0] == 1:
        return np.tile(background, (size_px, size_px, 1))
    enlarged = cv2.resize(background, (size_px, size_px), interpolation=cv2.INTER_LINEAR)
    return np.asarray(enlarged, np.float32)


def _paint(image: NDArray[np.float32], item: SceneObject, coverage: NDArray[np.uint8]) -> None:
    """Blend the object into the image where it covers it."""
    x, y, width, height = cv2.boundingRect(coverage)
    if width == 0:
        return
    window = np.s_[y : y + height, x : x + width]
    alpha = (coverage[window].astype(np.float32) / 255)[..., None]
    colour = np.array(item.paint, np.float32)
    paint: NDArray[np.float32] = colour
    if item.texture != "plain":
        pattern = _pattern(item, (y, x), (height, width), image.shape[0])[..., None]
        paint = np.where(pattern, _second_tone(colour), colour)
    image[window] += (paint - image[window]) * alpha


def _second_tone(colour: NDArray[np.float32]) -> NDArray[np.float32]:
    return colour * 0.45 if colour.sum() > 330 else colour * 0.5 + 125


def _pattern(
    item: SceneObject, corner_yx: tuple[int, int], shape_hw: tuple[int, int], size_px: int
) -> NDArray[np.bool_]:
    """Where stripes or dots show the object's second tone."""
    period = max(item.texture_period * size_px, 4.0)
    ys, xs = np.ogrid[
        corner_yx[0] : corner_yx[0] + shape_hw[0], corner_yx[1] : corner_yx[1] + shape_hw[1]
    ]
    cos, sin = math.cos(item.texture_angle), math.sin(item.texture_angle)
    along, across = (xs * cos + ys * sin) % period, (ys * cos - xs * sin) % period
    if item.texture == "striped":
        return np.asarray(along < 0.4 * period)
    half = period / 2
    return np.asarray((along - half) ** 2 + (across - half) ** 2 < (0.3 * period) ** 2)
