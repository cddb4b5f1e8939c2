"""Outlines of the demo world's objects, in units of the object's radius around its centre."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from simpleseg_polygon.geometry import Point

Points = NDArray[np.float64]
"""Shape (N, 2), x right and y down."""

_SUBPIXEL_BITS = 4
_TURN = np.linspace(0, 2 * math.pi, 48, endpoint=False)


@dataclass(frozen=True)
class Outline:
    """A filled polygon (``thickness`` 0) or strokes of a pen of that thickness."""

    strokes: tuple[Points, ...]
    thickness: float = 0.0

    def scaled(self, factor: float, centre: Point) -> "Outline":
        moved = tuple(stroke * factor + np.array(centre) for stroke in self.strokes)
        return Outline(moved, self.thickness * factor)

    def coverage(self, size_px: int) -> NDArray[np.uint8]:
        """How much of each pixel of a ``size_px`` square is covered, 0 to 255, antialiased."""
        canvas = np.zeros((size_px, size_px), np.uint8)
        scale = size_px * (1 << _SUBPIXEL_BITS)
        # Half a pixel less: cv2 puts pixel centres on whole numbers.
        half = 1 << (_SUBPIXEL_BITS - 1)
        lines = [np.round(stroke * scale - half).astype(np.int32) for stroke in self.strokes]
        if self.thickness:
            pen = max(2, round(self.thickness * size_px))
            cv2.polylines(canvas, lines, False, 255, pen, cv2.LINE_AA, _SUBPIXEL_BITS)
        else:
            cv2.fillPoly(canvas, lines, 255, cv2.LINE_AA, _SUBPIXEL_BITS)
        return canvas


def _rotated(points: Points, angle: float) -> Points:
    cos, sin = math.cos(angle), math.sin(angle)
    turned: Points = points @ np.array([[cos, sin], [-sin, cos]])
    return turned


def _regular(corners: int, phase: float = -math.pi / 2) -> Points:
    angles = phase + np.arange(corners) * 2 * math.pi / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _polar(radius: float | Points) -> Points:
    ring: Points = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1) * np.reshape(radius, (-1, 1))
    return ring


def _circle(rng: Generator) -> Points:
    return _polar(1.0)


def _ellipse(rng: Generator) -> Points:
    return np.asarray(_polar(1.0) * np.array([1.1, rng.uniform(0.5, 0.65)]), np.float64)


def _square(rng: Generator) -> Points:
    return np.asarray(_regular(4, -math.pi / 4) * 1.1)


def _rectangle(rng: Generator) -> Points:
    corners = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    return np.asarray(corners * np.array([1.0, rng.uniform(0.4, 0.55)]))


def _triangle(rng: Generator) -> Points:
    return np.asarray(_regular(3) * 1.1)


def _star(rng: Generator) -> Points:
    points = _regular(10) * 1.15
    points[1::2] *= rng.uniform(0.42, 0.5)
    return points


def _diamond(rng: Generator) -> Points:
    return np.array([[0.0, -1.15], [0.7, 0.0], [0.0, 1.15], [-0.7, 0.0]])


def _hexagon(rng: Generator) -> Points:
    return _regular(6)


def _heart(rng: Generator) -> Points:
    x = 16 * np.sin(_TURN) ** 3
    y = 13 * np.cos(_TURN) - 5 * np.cos(2 * _TURN) - 2 * np.cos(3 * _TURN) - np.cos(4 * _TURN)
    return np.stack([x, -y], axis=1) / 16


def _cross(rng: Generator) -> Points:
    w = rng.uniform(0.28, 0.4)
    arm = np.array([[-w, -1.0], [w, -1.0], [w, -w]])
    return np.concatenate([_rotated(arm, quarter * math.pi / 2) for quarter in range(4)])


def _crescent(rng: Generator) -> Points:
    outer, inner = np.linspace(-2.2, 2.2, 32), np.linspace(1.9, -1.9, 24)
    back = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    front = np.stack([np.cos(inner) * 0.85 - 0.3, np.sin(inner) * 0.85], axis=1)
    return np.concatenate([back, front])


def _arrow(rng: Generator) -> Points:
    w = rng.uniform(0.2, 0.3)
    upper = np.array([[-1.0, -w], [0.15, -w], [0.15, -0.65], [1.1, 0.0]])
    lower = upper[-2::-1] * np.array([1.0, -1.0])
    return np.concatenate([upper, lower])


def _blob(rng: Generator) -> Points:
    radius = np.ones_like(_TURN)
    for k in (2, 3, 4, 5):
        radius += rng.uniform(0, 0.32 / k) * np.cos(k * _TURN + rng.uniform(0, 2 * math.pi))
    return _polar(radius * 0.9)


def _wave(rng: Generator) -> Points:
    x = np.linspace(-1.1, 1.1, 24)
    return np.stack([x, rng.uniform(0.25, 0.4) * np.sin(x * rng.uniform(2.5, 4))], axis=1)


def _bar(rng: Generator) -> Points:
    return np.array([[-1.1, 0.0], [1.1, 0.0]])


_FILLED = {
    "circle": _circle,
    "ellipse": _ellipse,
    "square": _square,
    "rectangle": _rectangle,
    "triangle": _triangle,
    "star": _star,
    "diamond": _diamond,
    "hexagon": _hexagon,
    "heart": _heart,
    "cross": _cross,
    "crescent": _crescent,
    "arrow": _arrow,
    "blob": _blob,
}
_DRAWN = {"wave": _wave, "bar": _bar}
_ANY_ANGLE = {"ellipse", "rectangle", "crescent", "arrow", "wave", "bar"}
SHAPES = (*_FILLED, *_DRAWN)

# Strokes on a grid from (-1, -1) upper left to (1, 1) lower right; letters without holes.
_LETTER_STROKES: dict[str, tuple[tuple[tuple[float, float], ...], ...]] = {
    "C": (((0.8, -0.7), (0.2, -1), (-0.5, -0.7), (-0.8, 0), (-0.5, 0.7), (0.2, 1), (0.8, 0.7)),),
    "E": (((0.7, -1), (-0.7, -1), (-0.7, 1), (0.7, 1)), ((-0.7, 0), (0.5, 0))),
    "F": (((0.7, -1), (-0.7, -1), (-0.7, 1)), ((-0.7, 0), (0.5, 0))),
    "H": (((-0.7, -1), (-0.7, 1)), ((0.7, -1), (0.7, 1)), ((-0.7, 0), (0.7, 0))),
    "K": (((-0.7, -1), (-0.7, 1)), ((0.7, -1), (-0.6, 0.1), (0.7, 1))),
    "L": (((-0.6, -1), (-0.6, 1), (0.7, 1)),),
    "N": (((-0.7, 1), (-0.7, -1), (0.7, 1), (0.7, -1)),),
    "T": (((-0.8, -1), (0.8, -1)), ((0, -1), (0, 1))),
    "U": (((-0.7, -1), (-0.7, 0.5), (-0.3, 1), (0.3, 1), (0.7, 0.5), (0.7, -1)),),
    "V": (((-0.8, -1), (0, 1), (0.8, -1)),),
    "X": (((-0.8, -1), (0.8, 1)), ((0.8, -1), (-0.8, 1))),
    "Y": (((-0.8, -1), (0, 0), (0.8, -1)), ((0, 0), (0, 1))),
    "Z": (((-0.8, -1), (0.8, -1), (-0.8, 1), (0.8, 1)),),
}
LETTERS = tuple(_LETTER_STROKES)


def outline_of(kind: str, letter: str | None, rng: Generator) -> Outline:
    """A random outline of a kind: proportions vary, and so does the angle (little for shapes whose
    name depends on how they stand, such as a square and a diamond)."""
    if letter is not None:
        strokes = tuple(np.array(stroke) * 0.85 for stroke in _LETTER_STROKES[letter])
        angle = float(rng.uniform(-0.2, 0.2))
        thickness = float(rng.uniform(0.35, 0.5))
    elif kind in _DRAWN:
        strokes, angle = (_DRAWN[kind](rng),), float(rng.uniform(-math.pi, math.pi))
        thickness = float(rng.uniform(0.25, 0.4))
    else:
        strokes, thickness = (_FILLED[kind](rng),), 0.0
        reach = math.pi if kind in _ANY_ANGLE else 0.2
        angle = float(rng.uniform(-reach, reach))
    return Outline(tuple(_rotated(stroke, angle) for stroke in strokes), thickness)
