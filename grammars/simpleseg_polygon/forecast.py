"""Where an outline goes next: the chances of the next vertex, and of the outline's end.

A network of 8,500 weights reads the last five vertices of a part and its first, and gives a mixture
of logistic distributions over the next vertex. It was learned on outlines of drawn scenes
(``simpleseg_training/outline_statistics.py``), and needs numpy only.
"""

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Vertex = tuple[float, float]
"""x and y in thousandths, as the text writes them."""

TAIL = 5  # vertices that a forecast looks at, besides the first
FEATURES = 28
LEAST_LOG_SCALE = -1.2  # of a component, in thousandths: much sharper than a step of the text
_LOG_SCALE_CENTRE = 3.5
_FIRST_STEP = 60.0
_LEAST_STEP = 4.0
_WEIGHTS_FILE = "outline_statistics.npz"


class Trail(NamedTuple):
    """A part so far: its first vertex, its last ones (at most ``TAIL``) and how many in all."""

    first: Vertex
    tail: tuple[Vertex, ...]
    length: int

    @classmethod
    def of(cls, vertices: Sequence[Vertex]) -> "Trail":
        """Of a part's vertices, at least one."""
        return cls(vertices[0], tuple(vertices[-TAIL:]), len(vertices))

    def then(self, vertex: Vertex) -> "Trail":
        return Trail(self.first, (*self.tail, vertex)[-TAIL:], self.length + 1)


def features(trail: Trail) -> tuple[list[float], float]:
    """What the network reads, ``FEATURES`` values, and the outline's usual step in
    thousandths, which its answer is measured in."""
    first, tail, length = trail
    places = (*(first,) * (TAIL - len(tail)), *tail)
    (x5, y5), (x4, y4), (x3, y3), (x2, y2), (x, y) = places
    dx, dy, ex, ey, fx, fy = x - x2, y - y2, x2 - x3, y2 - y3, x3 - x4, y3 - y4
    last, before = math.hypot(dx, dy), math.hypot(ex, ey)
    taken = [size for size in (last, before, math.hypot(fx, fy)) if size]
    step = max(sum(taken) / max(len(taken), 1), _LEAST_STEP) if length > 1 else _FIRST_STEP
    home_x, home_y = first[0] - x, first[1] - y
    unit, unit_before = 1 / max(last, 1.0), 1 / max(before, 1.0)
    return [
        *(d / step for d in (dx, dy, ex, ey, fx, fy, x4 - x5, y4 - y5)),
        math.log(step) - _LOG_SCALE_CENTRE,
        math.tanh(home_x / step / 3),
        math.tanh(home_y / step / 3),
        math.log1p(math.hypot(home_x, home_y) / step) - 1,
        min(x, 1000 - x) / 250 - 1,
        min(y, 1000 - y) / 250 - 1,
        x / 500 - 1,
        y / 500 - 1,
        min(length, 16) / 8 - 1,
        float(length <= 1),
        float(length <= 2),
        float(length <= 3),
        *(dx * unit, dy * unit, ex * unit_before, ey * unit_before),
        *(float(not d) for d in (dx, dy, ex, ey)),
    ], step


class Coordinate(NamedTuple):
    """The chances of a coordinate: logistic distributions with weights, in thousandths."""

    weight: NDArray[np.float32]
    centre: NDArray[np.float32]
    half_sharpness: NDArray[np.float32]

    def below(self, places: NDArray[np.float32]) -> NDArray[np.float32]:
        """The chance of being below each of the places, but for one factor and one summand."""
        off = places[:, None] - self.centre
        off *= self.half_sharpness
        # The logistic distribution function is (1 + tanh(z / 2)) / 2.
        below: NDArray[np.float32] = np.tanh(off, out=off) @ self.weight
        return below


class Forecast:
    """The chances of what follows a part's last vertex.

    ``ends`` is the chance that no vertex follows. If one does, ``x`` and then ``y`` say where.
    """

    def __init__(self, output: NDArray[np.float32], last: Vertex, step: float) -> None:
        """From the network's output: of each component the logit, then where it lies (x, y, in
        steps from the last vertex), its logarithmic widths (x, y) and how y follows x; and the
        logit of the end."""
        self.ends = 1 / (1 + math.exp(-min(max(float(output[-1]), -30.0), 30.0)))
        self._output, self._last, self._step = output[:-1].reshape(6, -1), last, step

    @cached_property
    def _half_sharpness(self) -> NDArray[np.float32]:
        log_scale = self._output[3:5] + (math.log(self._step) - 1)
        np.maximum(log_scale, LEAST_LOG_SCALE, out=log_scale)
        sharpness: NDArray[np.float32] = np.exp(-math.log(2) - log_scale, out=log_scale)
        return sharpness

    @cached_property
    def x(self) -> Coordinate:
        weight = np.exp(self._output[0])
        centre = self._output[1] * self._step + self._last[0]
        return Coordinate(weight, centre, self._half_sharpness[0])

    def y(self, x: float) -> Coordinate:
        """Of y where x is known."""
        of_x, output = self.x, self._output
        away = x - of_x.centre
        off = np.tanh(away * of_x.half_sharpness)
        weight = of_x.weight * of_x.half_sharpness * (1 - off * off)  # the density at x
        centre = output[2] * self._step + self._last[1] + output[5] * away
        return Coordinate(weight, centre, self._half_sharpness[1])


class OutlineStatistics:
    """The learned network, of two hidden layers."""

    def __init__(self, weights: Sequence[NDArray[np.float32]]) -> None:
        """``weights`` are matrix (inputs, outputs) and bias of each layer, in order."""
        self._weights = [np.asarray(array, np.float32) for array in weights]

    @classmethod
    @lru_cache(maxsize=1)
    def shipped(cls) -> "OutlineStatistics":
        """Those that come with the package."""
        with (files(__package__) / _WEIGHTS_FILE).open("rb") as file, np.load(file) as arrays:
            return cls([arrays[name] for name in arrays.files])

    def forecast(self, trail: Trail) -> Forecast:
        values, step = features(trail)
        hidden = np.array(values, np.float32)
        for matrix, bias in zip(self._weights[:-2:2], self._weights[1:-2:2], strict=True):
            hidden = np.maximum(hidden @ matrix + bias, 0)
        return Forecast(hidden @ self._weights[-2] + self._weights[-1], trail.tail[-1], step)
