"""Other ways to guess the next vertex than ``simpleseg_polygon.guesses``, to measure it against.

Each predicts one vertex; its digits are drafted as long as they agree with what is known, else
those of the nearest number that does. None predicts where a part ends.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable

from simpleseg_polygon.forecast import Trail, Vertex
from simpleseg_polygon.guesses import Guess, LearnedGuesser

Predict = Callable[[Trail], Vertex]

_FIRST_VERTEX = (300.0, 300.0)


def copy(trail: Trail) -> Vertex:
    """The vertex before."""
    return trail.tail[-1]


def go_straight_on(trail: Trail) -> Vertex:
    """The last step once more: linear extrapolation."""
    if len(trail.tail) < 2:
        return trail.tail[-1]
    (x0, y0), (x1, y1) = trail.tail[-2:]
    return 2 * x1 - x0, 2 * y1 - y0


def step_on(trail: Trail) -> Vertex:
    """In the direction of the last step, as far as the mean of the last three."""
    a = [complex(*vertex) for vertex in trail.tail[-4:]]
    steps = [after - before for before, after in zip(a[:-1], a[1:], strict=True)]
    if not steps or not steps[-1]:
        return trail.tail[-1]
    length = sum(map(abs, steps)) / len(steps)
    predicted = a[-1] + length * steps[-1] / abs(steps[-1])
    return predicted.real, predicted.imag


def turn_again(trail: Trail) -> Vertex:
    """The last step turned once more by the last turn, nine tenths as long as the shorter of the
    last two."""
    if len(trail.tail) < 3:
        return trail.tail[-1]
    a, b, c = (complex(*vertex) for vertex in trail.tail[-3:])
    before, last = b - a, c - b
    if not before or not last:
        return trail.tail[-1]
    direction = last * last / before
    predicted = c + 0.9 * min(abs(before), abs(last)) * direction / abs(direction)
    return predicted.real, predicted.imag


class PointGuesser:
    """Guesses by one of these; ``grid_hw`` as in ``simpleseg_polygon.drafts.Drafter``."""

    def __init__(self, predict: Predict, grid_hw: tuple[int, int] | None = None) -> None:
        self._predict = predict
        self._grid_xy = None if grid_hw is None else (_edges(grid_hw[1]), _edges(grid_hw[0]))

    def guess(self, trail: Trail | None) -> Guess:
        vertex = _FIRST_VERTEX if trail is None else self._predict(trail)
        return _PointGuess(vertex, self._grid_xy)


class _PointGuess:
    ends = 0.0

    def __init__(self, vertex: Vertex, grid_xy: tuple[list[int], list[int]] | None) -> None:
        self._vertex = vertex
        self._grid_xy = grid_xy

    def number(self, known: bytes, x: float | None) -> tuple[bytes, list[float]]:
        axis = int(x is not None)
        grid = None if self._grid_xy is None else self._grid_xy[axis]
        digits = b"%03d" % _nearest(self._vertex[axis], known, grid)
        least = max(1, len(known))
        digits = digits[:least] + digits[least:].rstrip(b"0")
        return digits, [1.0] * (len(digits) - len(known))


def _nearest(expected: float, known: bytes, grid: list[int] | None) -> int:
    """The number of thousandths nearest to the expected one that begins with known digits."""
    width = (1000, 100, 10)[len(known)]
    first = int(known or b"0") * width
    last = first + width - 1
    if grid is not None:
        low, high = bisect_left(grid, first), bisect_right(grid, last)
        if low < high:
            at = bisect_left(grid, expected, low, high)
            around = grid[max(at - 1, low) : min(at + 1, high)]
            return min(around, key=lambda value: abs(value - expected))
    return min(max(round(expected), first), last)


def _edges(pixels: int) -> list[int]:
    return sorted({round(1000 * edge / pixels) for edge in range(pixels)} - {1000})


class NeverEnding:
    """The learned statistics without what they know of where parts end."""

    def __init__(self, grid_hw: tuple[int, int] | None) -> None:
        self._guesser = LearnedGuesser(grid_hw)

    def guess(self, trail: Trail | None) -> Guess:
        return _WithoutEnd(self._guesser.guess(trail))


class _WithoutEnd:
    ends = 0.0

    def __init__(self, guess: Guess) -> None:
        self.number = guess.number
