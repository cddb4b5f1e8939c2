"""The rules for colours, written down a second time, with numpy and without a decoder."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def _rounded(values: NDArray[Any]) -> Pixels:
    pixels: Pixels = np.rint(values).astype(np.uint8)
    return pixels


def of_grey(levels_hw: NDArray[Any]) -> Pixels:
    """Grey of 8 or 16 bits."""
    most = np.iinfo(levels_hw.dtype).max
    return np.repeat(_rounded(levels_hw.astype(float) * 255 / most)[..., None], 3, axis=2)


def of_colour16(levels_hw3: NDArray[np.uint16]) -> Pixels:
    """Of 16-bit colour the high byte counts."""
    return (levels_hw3 >> 8).astype(np.uint8)


def over_white(colour_hw3: NDArray[Any], alpha_hw: NDArray[Any]) -> Pixels:
    share = alpha_hw.astype(float)[..., None] / 255
    return _rounded(colour_hw3.astype(float) * share + 255 * (1 - share))


def of_cmyk(inks_hw4: NDArray[Any]) -> Pixels:
    """255 is all of an ink."""
    inks = inks_hw4.astype(float)
    return _rounded((255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255)


def turned(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """The picture as displayed: the EXIF standard says where row 0 and column 0 are."""
    rows_then_columns = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: pixels[::-1].swapaxes(0, 1),
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: pixels[:, ::-1].swapaxes(0, 1),
    }
    return rows_then_columns.get(orientation, pixels)
