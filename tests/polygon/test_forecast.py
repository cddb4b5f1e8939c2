"""Forecasts of the next vertex: proper chances, the likeliest digits, outlines that close."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from simpleseg_polygon.forecast import FEATURES, Forecast, OutlineStatistics, Trail, features
from simpleseg_polygon.guesses import LearnedGuesser

vertices = st.tuples(st.integers(0, 999), st.integers(0, 999))
trails = st.lists(vertices, min_size=1, max_size=12).map(Trail.of)


def masses(forecast: Forecast, x: int | None) -> NDArray[np.float64]:
    """The chance of each number of thousandths among 0..999."""
    coordinate = forecast.x if x is None else forecast.y(x)
    below = coordinate.below(np.arange(1001, dtype=np.float32) - 0.5).astype(np.float64)
    chances: NDArray[np.float64] = np.diff(below) / (below[-1] - below[0])
    return chances


@given(st.lists(vertices, min_size=1, max_size=12))
def test_a_trail_grows_like_the_list_of_its_vertices(part: list[tuple[int, int]]) -> None:
    trail = Trail.of(part[:1])
    for vertex in part[1:]:
        trail = trail.then(vertex)
    assert trail == Trail.of(part)


@given(trails)
def test_features_are_numbers_whatever_the_outline(trail: Trail) -> None:
    values, step = features(trail)
    assert len(values) == FEATURES
    assert np.isfinite(values).all()
    assert step >= 4


@given(trails, vertices)
def test_chances_are_chances(trail: Trail, vertex: tuple[int, int]) -> None:
    forecast = OutlineStatistics.shipped().forecast(trail)
    assert 0 <= forecast.ends <= 1
    for x in (None, vertex[0]):
        if forecast.y(vertex[0]).weight.sum() > 1e-6:
            assert masses(forecast, x).min() >= -1e-5


def likeliest_by_search(chances: NDArray[np.float64], known: str) -> str:
    """Digit after digit, each of the most mass; a number ends where no other digit has more than
    the number that is written so far."""
    texts = [f"{number:03d}".rstrip("0") or "0" for number in range(1000)]
    while len(known) < 3:
        options = {f"{known}{digit}" for digit in range(10)}
        mass = {
            option: sum(chances[n] for n in range(1000) if texts[n].startswith(option))
            for option in options
        }
        if known:
            mass[known] = sum(chances[n] for n in range(1000) if texts[n] == known)
        best = max(mass, key=mass.__getitem__)
        if best == known:
            break
        known = best
    return known


@pytest.mark.parametrize("grid_hw", [None, (100, 128)])
def test_the_digits_are_the_likeliest(grid_hw: tuple[int, int] | None) -> None:
    rng = np.random.default_rng(3)
    guesser = LearnedGuesser(grid_hw)
    compared = 0
    for _ in range(8):
        part = np.cumsum(rng.integers(-60, 60, (6, 2)), axis=0) + 500
        trail = Trail.of([(int(x), int(y)) for x, y in part])
        forecast = OutlineStatistics.shipped().forecast(trail)
        for x in (None, int(part[-1, 0]) + 20):
            chances = masses(forecast, x)
            if grid_hw is not None:
                chances = on_grid(chances, grid_hw[x is None])
            for known in ("", "4", "5", "51", "47"):
                width = 10 ** (3 - len(known))
                first = int(known or "0") * width
                if chances[first : first + width].sum() < 1e-4:  # below what float32 tells apart
                    continue
                compared += 1
                digits, _ = guesser.guess(trail).number(known.encode(), x)
                assert digits.decode() == likeliest_by_search(chances, known)
    assert compared > 30


def on_grid(chances: NDArray[np.float64], pixels: int) -> NDArray[np.float64]:
    """Every number's chance given to the nearest edge of a pixel."""
    edges = np.array([round(1000 * edge / pixels) for edge in range(pixels)])
    gathered = np.zeros(1000)
    for number, chance in enumerate(chances):
        away = np.abs(edges - number)
        nearest = np.flatnonzero(away == away.min())
        gathered[edges[nearest]] += chance / len(nearest)
    return gathered


def test_an_outline_goes_on_its_way_and_closes() -> None:
    circle = [
        (round(500 + 200 * np.cos(angle)), round(500 + 200 * np.sin(angle)))
        for angle in np.arange(12) / 12 * 2 * np.pi - 2.2
    ]
    statistics = OutlineStatistics.shipped()
    for done in range(4, 11):
        forecast = statistics.forecast(Trail.of(circle[:done]))
        assert forecast.ends < 0.5
        expected_x = (masses(forecast, None) * np.arange(1000)).sum()
        step = abs(circle[done][0] - circle[done - 1][0])
        assert abs(expected_x - circle[done][0]) < max(step, 40)
    assert statistics.forecast(Trail.of(circle)).ends > 0.5


def test_where_rings_begin_is_guessed_on_the_grid() -> None:
    guess = LearnedGuesser((128, 128)).guess(None)
    assert guess.number(b"23", None)[0] == b"234"  # 30 / 128
    assert guess.ends == pytest.approx(0, abs=1e-9)
