"""Parts for `simpleseg annotate` that cost next to nothing: a bright square on a dark ground."""

import numpy as np
from PIL import Image

from simpleseg_polygon.geometry import Box
from simpleseg_training.annotate.parts import Detection
from simpleseg_training.annotate.parts import Image as Pixels

SIZE_PX, SIDE_PX = 32, 16


def picture(number: int) -> Image.Image:
    """No two of the first 65,536 are alike."""
    high, low = divmod(number, 256)
    image = Image.new("RGB", (SIZE_PX, SIZE_PX), (0, 0, low))
    square = Image.new("RGB", (SIDE_PX, SIDE_PX), (255, high, 0))
    image.paste(square, (number % 16, number // 16 % 16))
    return image


class Part:
    def detect(self, image: Pixels) -> list[Detection]:
        rows, columns = np.nonzero(image[:, :, 0])
        box = Box(
            columns.min() / SIZE_PX,
            rows.min() / SIZE_PX,
            (columns.max() + 1) / SIZE_PX,
            (rows.max() + 1) / SIZE_PX,
        )
        return [Detection("square", 0.9, box)]

    def segment(self, image: Pixels, boxes: list[Box]) -> list[np.ndarray]:
        return [image[:, :, 0] > 0 for _ in boxes]


def detector(labels: list[str]) -> Part:
    return Part()
