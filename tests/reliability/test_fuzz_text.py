"""Texts that are almost an answer: every one is read, and what it says is drawn. ``make fuzz-text``
reads 100,000; ``FUZZ_SEED`` repeats a run."""

import os
import random
import time
from typing import get_args

import pytest

from simpleseg_polygon.codec import Target, parse
from simpleseg_polygon.geometry import ImageSize, Region
from simpleseg_polygon.raster import region_to_rle

from ..times import TIMES

SIZE = ImageSize(width=640, height=480)
PIECES = (
    "[", "]", "[[", "]]", "], [", ", ", ",", ".", "0.", "1.", "-", "-0", "1e309", "1e-400", "NaN",
    "Infinity", "null", "0.5", "0.123, 0.456", "9" * 40, "2147483647", "-2147483648", " ", "\n",
    "\x00", "\ufeff", "\u0660", "\U0001f600", "\ud800", "```json\n", '{"points": ',
    "The answer is ",
    "[[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]]", "[0.5, 0.5], " * 200, "[" * 300, "]" * 300,
)  # fmt: skip


def sound(draw: random.Random) -> str:
    rings = [
        ", ".join(f"[{draw.random():.3g}, {draw.random():.3g}]" for _ in range(draw.randint(1, 40)))
        for _ in range(draw.randint(0, 4))
    ]
    return "[" + ", ".join(f"[{ring}]" for ring in rings) + "]."


def mutated(draw: random.Random) -> str:
    """An answer with up to five faults, or only pieces of answers."""
    if draw.random() < 0.2:
        return "".join(draw.choices(PIECES, k=draw.randint(0, 12)))
    text = sound(draw)
    for _ in range(draw.randint(0, 5)):
        place, length = draw.randint(0, len(text)), draw.randint(0, 20)
        kind = draw.randrange(4)
        if kind == 0:
            text = text[:place] + draw.choice(PIECES) + text[place:]
        elif kind == 1:
            text = text[:place] + text[place + length :]
        elif kind == 2:
            text = text[:place]
        else:
            text = text[:place] + text[place : place + length] * 3 + text[place:]
    return text


def fuzz(count: int) -> float:
    """The longest that one text took, in milliseconds."""
    seed = int(os.environ.get("FUZZ_SEED", "20261125"))
    draw, slowest, drawn = random.Random(seed), 0.0, 0
    for case in range(count):
        text = mutated(draw)
        began = time.thread_time()
        try:
            for target in get_args(Target):
                value = parse(text, target).value
                if isinstance(value, Region):
                    drawn += bool(value.parts)
                    region_to_rle(value, SIZE)
        except Exception as error:
            raise AssertionError(f"FUZZ_SEED={seed}, case {case}: {text!r}") from error
        slowest = max(slowest, (time.thread_time() - began) * 1000)
    print(f"FUZZ_SEED={seed}: {count} texts, {drawn} with a region, the slowest {slowest:.1f} ms")
    assert drawn > count / 4
    return slowest


@pytest.mark.catalogue("G7")
def test_text_fuzz() -> None:
    fuzz(2000)


@pytest.mark.slow
def test_text_fuzz_100_000() -> None:
    fuzz(100_000 * TIMES)
