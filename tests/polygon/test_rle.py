"""COCO RLE, byte for byte against pycocotools."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco

from simpleseg_polygon.geometry import ImageSize
from simpleseg_polygon.rle import (
    Rle,
    mask_to_rle,
    mask_to_runs,
    rle_to_mask,
    rle_to_runs,
    runs_area,
    runs_box,
    runs_to_mask,
    runs_to_rle,
    union_runs,
)

# pycocotools' decoder is not ready for numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Mask = NDArray[np.bool_]


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    """Noise of any density, stretched so that short and long runs meet."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    noise = rng.random((draw(st.integers(1, 20)), draw(st.integers(1, 20))))
    coarse = noise < draw(st.floats(0, 1))
    return np.asarray(np.kron(coarse, np.ones((draw(st.integers(1, 90)), 2), np.bool_)), np.bool_)


def reference(mask: Mask) -> dict[str, Any]:
    encoded: dict[str, Any] = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return encoded


@settings(max_examples=100, deadline=None)
@given(masks())
def test_encoding_equals_pycocotools(mask: Mask) -> None:
    expected = reference(mask)
    rle = mask_to_rle(mask)
    assert rle.counts.encode() == expected["counts"]
    assert json.loads(json.dumps(rle.to_coco()))["size"] == expected["size"]
    assert np.array_equal(coco.decode(rle.to_coco()), mask)
    assert np.array_equal(rle_to_mask(Rle.from_coco(expected)), mask)


@settings(max_examples=100, deadline=None)
@given(masks())
def test_area_and_box_equal_pycocotools(mask: Mask) -> None:
    expected, size = reference(mask), ImageSize(*mask.shape)
    runs = mask_to_runs(mask)
    assert runs_area(runs) == coco.area(expected)
    x0, y0, x1, y1 = runs_box(runs, size) or (0, 0, 0, 0)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if mask.any():
        assert (x0, y0) == (columns[0], rows[0])
        assert (x1, y1) == (columns[-1] + 1, rows[-1] + 1)
    assert [x0, y0, x1 - x0, y1 - y0] == coco.toBbox(expected).tolist()


@settings(max_examples=100, deadline=None)
@given(masks())
def test_runs_and_mask_are_the_same(mask: Mask) -> None:
    runs = mask_to_runs(mask)
    assert np.array_equal(runs_to_mask(runs, ImageSize(*mask.shape)), mask)
    assert np.array_equal(rle_to_runs(mask_to_rle(mask)), runs)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=12))
def test_union_is_that_of_the_pixels(ranges: list[tuple[int, int]]) -> None:
    pixels = np.zeros((80, 1), np.bool_)
    for start, length in ranges:
        pixels[start : start + length] = True
    starts = np.array([start for start, _ in ranges], np.int64)
    lengths = np.array([length for _, length in ranges], np.int64)
    assert np.array_equal(union_runs(starts, starts + lengths), mask_to_runs(pixels))


@pytest.mark.parametrize("runs", [[], [0, 2**31], [1, 2, 2**31 - 1, 2**31], [5, 7, 2**20, 2**30]])
def test_an_image_of_two_thousand_megapixels(runs: list[int]) -> None:
    size = ImageSize(2**15, 2**16)
    rle = runs_to_rle(np.array(runs, np.int64), size)
    assert rle_to_runs(rle).tolist() == runs
    assert coco.area(rle.to_coco()) == runs_area(np.array(runs, np.int64))


def test_uncompressed_counts_with_empty_runs_are_read() -> None:
    rle = Rle.from_coco({"size": [2, 3], "counts": [0, 0, 1, 2, 0, 1, 2]})
    assert rle_to_runs(rle).tolist() == [1, 4]
    assert rle_to_mask(rle).tolist() == [[False, True, False], [True, True, False]]


@pytest.mark.parametrize(
    "counts",
    [
        "",
        "5",
        "7",
        "V",
        "60_",
        "6é",
        "\x1f",
        "o" * 20 + "0",
        "no" * 500,
        b"\xff\xfe",
        [],
        [5],
        [7, -1],
        [2**70],
        [1.5, 4.5],
        [2**62, 2**62, 2**62, 2**62 + 6],
    ],
)
def test_malformed_counts_are_errors(counts: object) -> None:
    with pytest.raises(ValueError, match="RLE"):
        Rle.from_coco({"size": [2, 3], "counts": counts})


@pytest.mark.parametrize("size", [[0, 3], [2], [2.0, 3.0], [-2, -3]])
def test_malformed_sizes_are_errors(size: list[int]) -> None:
    with pytest.raises(ValueError, match=r"size|unpack"):
        Rle.from_coco({"size": size, "counts": "6"})


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=30))
def test_any_string_is_read_or_is_a_value_error(counts: str) -> None:
    try:
        rle = Rle.from_coco({"size": [4, 4], "counts": counts})
    except ValueError:
        return
    assert rle_to_mask(rle).shape == (4, 4)
