"""One evaluation question with its truth."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from simpleseg_polygon.raster import Rle, rle_to_mask


@dataclass(frozen=True)
class Case:
    """One phrase about one image; the true visible area is empty where the phrase is true of
    nothing there. A picture's path and a run-length encoding stand for their pixels, which are read
    when they are asked for: a data set has more of them than memory."""

    image: NDArray[np.uint8] | Path
    phrase: str
    truth: NDArray[np.bool_] | Rle

    @property
    def image_hw3(self) -> NDArray[np.uint8]:
        if not isinstance(self.image, Path):
            return self.image
        with Image.open(self.image) as picture:
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))

    @property
    def mask_hw(self) -> NDArray[np.bool_]:
        return rle_to_mask(self.truth) if isinstance(self.truth, Rle) else self.truth

    @property
    def is_absent(self) -> bool:
        return not self.mask_hw.any()
