"""Masks of drawn shapes with many vertices, for benchmarks."""

import math
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint8]
Draw = Callable[[int, np.random.Generator], Mask]


def filled(size_px: int, xy: NDArray[np.float64]) -> Mask:
    mask = np.zeros((size_px, size_px), np.uint8)
    cv2.fillPoly(mask, [np.round(xy * size_px).astype(np.int32)], 1)
    return mask


def around(rng: np.random.Generator, radius: NDArray[np.float64]) -> NDArray[np.float64]:
    """Vertices at the given distances around a random centre, beginning anywhere."""
    angle = rng.uniform(0, math.tau) + np.linspace(0, math.tau, len(radius), endpoint=False)
    x = rng.uniform(0.35, 0.65) + radius * np.cos(angle)
    y = rng.uniform(0.35, 0.65) + radius * np.sin(angle)
    return np.stack([x, y], axis=1)


def blob(size_px: int, rng: np.random.Generator) -> Mask:
    angle, size = np.linspace(0, math.tau, 400, endpoint=False), rng.uniform(0.1, 0.3)
    waves = (
        rng.normal(0, 0.28 / k) * np.cos(k * angle + rng.uniform(0, math.tau))
        for k in range(1, rng.integers(5, 12))
    )
    return filled(size_px, around(rng, size * np.clip(1 + sum(waves), 0.15, None)))


def letter(size_px: int, rng: np.random.Generator) -> Mask:
    scale = rng.uniform(0.008, 0.028) * size_px
    stroke = max(2, int(scale * rng.uniform(1, 3.5)))
    text = str(rng.choice(list("ABCDEFGHJKLMNPQRSTUVWXYZ23456789&")))
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, stroke)
    mask = np.zeros((size_px, size_px), np.uint8)
    corner = ((size_px - width) // 2, (size_px + height) // 2)
    cv2.putText(mask, text, corner, cv2.FONT_HERSHEY_SIMPLEX, scale, 1, stroke)
    return mask


def patches(size_px: int, rng: np.random.Generator) -> Mask:
    """One to three parts of smoothed noise, as of an object behind others."""
    noise = rng.normal(size=(size_px, size_px)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), rng.uniform(0.03, 0.09) * size_px).astype(np.float32)
    mask = (noise > np.quantile(noise, rng.uniform(0.75, 0.93))).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    largest = np.argsort(-stats[1:, cv2.CC_STAT_AREA])[: rng.integers(1, 4)] + 1
    return np.isin(labels, largest).astype(np.uint8)


def stick_figure(size_px: int, rng: np.random.Generator) -> Mask:
    mask = np.zeros((size_px, size_px), np.uint8)
    size = rng.uniform(0.15, 0.3) * size_px
    x, y = rng.uniform((0.35, 0.4), (0.65, 0.55)) * size_px

    def at(right: float, down: float) -> tuple[int, int]:
        return int(x + right * size), int(y + down * size)

    cv2.circle(mask, at(0, -0.9), int(size * 0.28), 1, -1)
    torso = (int(size * 0.35), int(size * 0.65))
    cv2.ellipse(mask, at(0, 0), torso, rng.uniform(-15, 15), 0, 360, 1, -1)
    for side in (-1, 1):
        hand = at(side * rng.uniform(0.5, 1), rng.uniform(-0.6, 0.5))
        foot = at(side * rng.uniform(0.1, 0.6), rng.uniform(1.0, 1.4))
        cv2.line(mask, at(side * 0.25, -0.4), hand, 1, max(2, int(size * 0.17)))
        cv2.line(mask, at(side * 0.15, 0.5), foot, 1, max(3, int(size * 0.22)))
    return mask


COMPLEX: tuple[Draw, ...] = (blob, letter, patches, stick_figure)
