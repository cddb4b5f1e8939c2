"""Images as models take them: stretched to a training size, and written for a wire."""

import base64
import io
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ImageFormat = Literal["png", "jpeg"]

# Little time is worth more than few bytes here; JPEG as near to the pixels as it goes.
_OPTIONS: dict[ImageFormat, dict[str, int]] = {
    "png": {"compress_level": 1},
    "jpeg": {"quality": 95, "subsampling": 0},
}


def stretched(image_hw3: NDArray[np.uint8], size_hw: tuple[int, int] | None) -> Image.Image:
    """The image at ``size_hw``, by Pillow's bicubic filter, which averages over the whole footprint
    when it shrinks; as it is where there is no such size."""
    image = Image.fromarray(image_hw3)
    if size_hw is None:
        return image
    height, width = size_hw
    return image.resize((width, height), Image.Resampling.BICUBIC)


def data_url(image: Image.Image, image_format: ImageFormat) -> str:
    """The image as a ``data:`` URL; PNG keeps every pixel as it is.

    >>> data_url(Image.new("RGB", (2, 2)), "png")[:22]
    'data:image/png;base64,'
    """
    file = io.BytesIO()
    image.save(file, image_format, **_OPTIONS[image_format])
    return f"data:image/{image_format};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
