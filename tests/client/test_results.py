"""Results: geometry out, mask out, picture out."""

import numpy as np
import pytest
from PIL import Image

from simpleseg import Segmentation, overlay
from simpleseg.drawing import PALETTE
from simpleseg_polygon.geometry import Box, ImageSize, Point, Region

SQUARE = (Point(0.25, 0.25), Point(0.75, 0.25), Point(0.75, 0.75), Point(0.25, 0.75))
GREY = (128, 128, 128)
CENTRE = Region((SQUARE,))


def segmentation(region: Region = CENTRE, **changes: object) -> Segmentation:
    picture = Image.new("RGB", (80, 40), GREY)
    values: dict[str, object] = {
        "prompt": "the square",
        "status": "empty" if region.is_empty else "ok",
        "region": region,
        "bbox": region.bounding_box(),
        "score": 0.5,
        "size_hw": ImageSize(40, 80),
        "open_image": picture.copy,
    }
    return Segmentation(**(values | changes))  # type: ignore[arg-type]


def test_geometry_and_mask() -> None:
    result = segmentation()
    assert result.polygons == [[(0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75)]]
    assert result.bbox == Box(0.25, 0.25, 0.75, 0.75)
    assert result.point_count == 4
    expected = np.zeros((40, 80), bool)
    expected[10:30, 20:60] = True
    assert np.array_equal(result.mask(), expected)


def test_a_mask_may_be_written_to() -> None:
    result = segmentation()
    result.mask()[:] = False
    assert result.mask().any()


def test_the_empty_region_has_an_empty_mask() -> None:
    result = segmentation(Region(()))
    assert (result.polygons, result.bbox, result.point_count) == ([], None, 0)
    assert result.mask().shape == (40, 80)
    assert not result.mask().any()


def test_overlay_paints_the_inside_and_leaves_the_outside() -> None:
    picture = segmentation().overlay(color=(255, 0, 0), min_side_px=400)
    assert picture.size == (800, 400)
    red, green, blue = picture.getpixel((400, 200))  # type: ignore[misc]
    assert red > GREY[0] + 30
    assert green == blue < GREY[1] - 30
    assert picture.getpixel((700, 380)) == GREY


def test_the_inside_is_translucent_and_its_edge_is_antialiased() -> None:
    triangle = Region(((Point(0.1, 0.1), Point(0.9, 0.5), Point(0.1, 0.9)),))
    picture = segmentation(triangle).overlay(color=(255, 0, 0), min_side_px=400)
    shades = {pixel for _, pixel in picture.getcolors(maxcolors=100_000) or []}
    assert len(shades) > 20


def test_overlay_keeps_the_image_that_it_is_given() -> None:
    image = Image.new("RGB", (600, 600), GREY)
    picture = segmentation(open_image=None).overlay(image)
    assert picture.size == image.size
    assert image.getcolors() == [(600 * 600, GREY)]


def test_transparency_is_drawn_as_white() -> None:
    image = Image.new("RGBA", (600, 600), (0, 0, 0, 0))
    assert segmentation(CENTRE).overlay(image).getpixel((590, 590)) == (255, 255, 255)


def test_overlay_without_an_image_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="overlay\\(image="):
        segmentation(open_image=None).overlay()


@pytest.mark.parametrize("status", ["empty", "truncated", "invalid"])
def test_any_outcome_can_be_drawn(status: str) -> None:
    result = segmentation(Region(()), status=status)
    assert result.overlay().getpixel((256, 10)) == GREY
    assert len(result.overlay().getcolors(100_000) or []) > 1  # the label


def test_a_long_prompt_stays_inside() -> None:
    picture = segmentation(prompt="a very long prompt " * 40).overlay(min_side_px=1)
    assert picture.size == (80, 40)


def test_several_results_share_a_picture() -> None:
    left = Region((tuple(Point(x * 0.4, y) for x, y in SQUARE),))
    right = Region((tuple(Point(0.6 + x * 0.4, y) for x, y in SQUARE),))
    picture = overlay([segmentation(left), segmentation(right, index=1)])
    for x, color in ((0.2, PALETTE[0]), (0.8, PALETTE[1])):
        shade = picture.getpixel((int(x * picture.width), picture.height // 2))
        assert np.argmax(np.subtract(shade, GREY)) == np.argmax(color)  # type: ignore[arg-type]


def test_overlay_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no result"):
        overlay([])
