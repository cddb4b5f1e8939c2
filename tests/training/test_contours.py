"""Labels under every convention and order."""

import numpy as np
import pytest

from simpleseg_polygon.contour import region_from_mask
from simpleseg_polygon.geometry import ImageSize, signed_area
from simpleseg_polygon.metrics import iou
from simpleseg_polygon.raster import region_to_mask
from simpleseg_training.contours import CONVENTIONS, Contours, Convention
from simpleseg_training.scenes import render_scene

MASKS = [mask for seed in range(20) for mask in render_scene(seed, 1, 3, 200).masks_hw]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_labels_are_clockwise_and_fit_their_mask(convention: Convention) -> None:
    contours = Contours(convention)
    for mask in MASKS:
        region = contours.region_of(mask)
        assert all(signed_area(ring) > 0 for ring in region.parts)
        fit = iou(region_to_mask(region, ImageSize(*mask.shape)), mask)
        # Index coordinates lose half a pixel all around.
        assert fit > (0.9 if convention == "edges" else 0.6)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_order_changes_nothing_but_the_order(convention: Convention) -> None:
    for mask in MASKS:
        there = Contours(convention).region_of(mask)
        back = Contours(convention, "counter-clockwise").region_of(mask)
        shuffled = Contours(convention, "unordered").region_of(mask, np.random.default_rng(0))
        assert [set(ring) for ring in there.parts] == [set(ring) for ring in shuffled.parts]
        for a, b in zip(there.parts, back.parts, strict=True):
            assert (b[0], b[1:]) == (a[0], a[:0:-1])
            assert signed_area(b) == pytest.approx(-signed_area(a))
    assert there != shuffled


def test_a_larger_epsilon_takes_fewer_vertices() -> None:
    counts = [
        sum(Contours(epsilon_ratio=ratio).region_of(mask).vertex_count for mask in MASKS)
        for ratio in (0.0, 0.002, 0.005, 0.02)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 2 * counts[-1]


def test_without_tolerance_nothing_is_lost() -> None:
    exact = Contours(epsilon_ratio=0, min_epsilon_px=0, min_part_area_px=1)
    assert exact.region_of(MASKS[0]) == region_from_mask(MASKS[0])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"convention": "cv2"}, "no convention 'cv2'"),
        ({"order": "random"}, "no order 'random'"),
        ({"epsilon_ratio": -0.1}, "epsilon_ratio"),
    ],
)
def test_what_makes_no_label_is_refused(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Contours(**wrong)  # type: ignore[arg-type]


def test_unordered_needs_a_generator() -> None:
    with pytest.raises(ValueError, match="random generator"):
        Contours(order="unordered").region_of(MASKS[0])
