"""The likeliest digits of the next vertex, by the learned statistics of outlines."""

from collections.abc import Sequence
from functools import lru_cache
from operator import sub
from typing import Protocol

import numpy as np

from simpleseg_polygon.forecast import Coordinate, Forecast, OutlineStatistics, Trail

# Rings begin at their upper left, anywhere there.
_ANYWHERE = Forecast(np.array([0, 0, 0, 1, 1, 0, -30], np.float32), (300, 300), 100.0)
_DIGITS = (*(b"%d" % digit for digit in range(10)), b"")
_NEGLIGIBLE = 1e-9
_CHANCE_IF_NEGLIGIBLE = 0.1
# 0, 10, ..., 1000 and then 1, 101, ..., 901: what the first two digits turn on.
_TENS = np.concatenate([np.arange(0, 1001, 10), np.arange(1, 1000, 100)])


class Guess(Protocol):
    """What may follow a part so far. ``ends`` is the chance that no vertex does."""

    @property
    def ends(self) -> float: ...

    def number(self, known: bytes, x: float | None) -> tuple[bytes, list[float]]:
        """The decimals of a coordinate that begins with those known (fewer than three), without
        trailing zeros; and the chance of each that is new, then that of the end where fewer than
        three are written. The coordinate is y where x is given, in thousandths."""
        ...


class LearnedGuesser:
    """Guesses by ``forecast.OutlineStatistics``; the last ones are kept, since an outline is asked
    about several times for each vertex.

    ``grid_hw`` as in ``drafts.Drafter``.
    """

    def __init__(
        self, grid_hw: tuple[int, int] | None = None, statistics: OutlineStatistics | None = None
    ) -> None:
        self._statistics = statistics or OutlineStatistics.shipped()
        height, width = grid_hw or (None, None)
        self._axes = Axis(width), Axis(height)
        self.guess = lru_cache(maxsize=512)(self._guess)

    def _guess(self, trail: Trail | None) -> "LearnedGuess":
        forecast = _ANYWHERE if trail is None else self._statistics.forecast(trail)
        return LearnedGuess(forecast, self._axes)


class Axis:
    """Where numbers begin: all thousandths, or with ``pixels`` the edges of so many pixels, each of
    which stands for the numbers nearest to it.

    ``places[v]`` is where numbers of v thousandths and more begin, v = 0..1000; ``tens`` are the
    places that the first two digits turn on.
    """

    def __init__(self, pixels: int | None) -> None:
        numbers = np.arange(1001)
        begins = numbers - 0.5
        if pixels is not None:
            # 1000 is left out, for it is not written ``0.``.
            edges = sorted({round(1000 * edge / pixels) for edge in range(pixels)} - {1000})
            middles = (np.array(edges[:-1]) + edges[1:]) / 2
            begins = np.array([0.0, *middles, 1000.0])[np.searchsorted(edges, numbers)]
        self.places = begins.astype(np.float32)
        self.tens = self.places[_TENS]


class LearnedGuess:
    """A guess whose digits are each the likeliest after those before."""

    def __init__(self, forecast: Forecast, axes: tuple[Axis, Axis]) -> None:
        self.ends = forecast.ends
        self._forecast = forecast
        self._axes = axes
        self._known: dict[float | None, tuple[Coordinate, list[float]]] = {}

    def number(self, known: bytes, x: float | None) -> tuple[bytes, list[float]]:
        axis = self._axes[x is not None]
        coordinate, tens = self._known.get(x) or self._learn(x, axis)
        digits, chances = known, list[float]()
        while len(digits) < 3:
            first = int(digits.ljust(3, b"0"))
            if len(digits) == 2:
                edges = coordinate.below(axis.places[first : first + 11]).tolist()
                below_next = edges[1]
            else:
                edges = tens[:101:10] if not digits else tens[first // 10 : first // 10 + 11]
                below_next = tens[101 + first // 100]
            digit, chance = likeliest_digit(edges, below_next, digits)
            chances.append(chance)
            if not digit:
                break
            digits += digit
        return digits, chances

    def _learn(self, x: float | None, axis: Axis) -> tuple[Coordinate, list[float]]:
        coordinate = self._forecast.x if x is None else self._forecast.y(x)
        tens: list[float] = coordinate.below(axis.tens).tolist()
        self._known[x] = coordinate, tens
        return coordinate, tens


def likeliest_digit(edges: Sequence[float], below_next: float, known: bytes) -> tuple[bytes, float]:
    """The likeliest digit after those known, and its chance; no digit where the number is likelier
    to end.

    ``edges`` are the chances, but for one factor and one summand, that the number is below where
    each digit begins, and below where the last one ends: eleven. Trailing zeros are not written: so
    the number that would go on with zeros ends instead. ``below_next`` is the chance to be below
    the number after that one.

    >>> likeliest_digit([0.0] * 5 + [0.75] + [1.0] * 5, 0.0, b"")
    (b'4', 0.75)
    >>> likeliest_digit([0.0] + [1.0] * 10, 0.75, b"4")
    (b'', 0.75)
    """
    chances = list(map(sub, edges[1:], edges))
    if known:
        ends = below_next - edges[0]
        chances[0] -= ends
        # What ends with a zero would have ended before it; but for 0.0, which cannot be shorter.
        chances.append(ends if len(known) == 1 or not known.endswith(b"0") else 0.0)
    highest = max(chances)
    likeliest = chances.index(highest)
    total = edges[-1] - edges[0]
    chance = highest / total if total > _NEGLIGIBLE else _CHANCE_IF_NEGLIGIBLE
    return _DIGITS[likeliest], chance
