"""Image files from strangers -> RGB arrays of a size that the engine wants.

Read are JPEG, PNG, WebP and GIF, told apart by their first bytes, never by a name or a declared
type. Of an animation the first frame counts. Type and size are judged here from the header alone
(``image_headers.py``), before any decoder is called; what the pixels are made of is in
``pixels.py``, and where that runs in ``image_intake.py``.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simpleseg_polygon.geometry import WHOLE, Box, ImageSize
from simpleseg_server.config import Settings
from simpleseg_server.errors import ApiError
from simpleseg_server.image_headers import header_size, is_cut, sniff
from simpleseg_server.pixels import EngineSize, Fault, Picture, PictureError, Reading, read_picture


@dataclass(frozen=True)
class DecodedImage:
    """``pixels_hw3`` is RGB uint8 at the engine's size; ``size`` is that of the displayed image.

    ``key`` is a hash of pixels and shape. ``is_animated``: further frames were left out. ``view``
    is the part of the displayed image, normalised, that the pixels show.
    """

    pixels_hw3: NDArray[np.uint8]
    key: str
    size: ImageSize
    exif_applied: bool
    is_animated: bool
    format: str
    view: Box = WHOLE


def judged(
    data: bytes, wanted: EngineSize, settings: Settings, param: str, view: Box = WHOLE
) -> Reading:
    """What to read of a file whose first bytes allow it, in less than a millisecond or so.

    Of a ``view`` only that part of the displayed image is handed to the engine, widened to whole
    pixels. Raises ApiError: 413 image_too_large; 415 image_type_unsupported; 422 image_empty,
    image_truncated, image_decode_failed, image_too_many_pixels, image_dimensions_invalid,
    image_aspect_ratio.
    """
    if not data:
        raise ApiError(422, "image_empty", "the image has no bytes", param=param)
    if len(data) > settings.max_image_bytes:
        raise too_large(settings, param)
    name = sniff(data)
    if name is None:
        raise ApiError(
            415, "image_type_unsupported", "the image must be JPEG, PNG, WebP or GIF", param=param
        )
    size = header_size(data, name)
    if size is None:
        code: Fault = "image_truncated" if is_cut(data, name) else "image_decode_failed"
        raise _refusal(code, settings, param)
    _check_size(size, settings, param)
    return Reading(data, name, size, wanted, settings.max_image_metadata_bytes, view)


def decode(
    reading: Reading,
    settings: Settings,
    param: str,
    read: Callable[[Reading], Picture] = read_picture,
) -> DecodedImage:
    """Decode what was judged; blocks for milliseconds to seconds, so call it in a worker thread.

    Raises ApiError: 422 image_truncated, image_decode_failed, image_decode_timeout,
    image_metadata_too_large, image_too_many_pixels; whatever else ``read`` raises.
    """
    try:
        picture = read(reading)
    except PictureError as error:
        raise _refusal(error.code, settings, param) from None
    layout = reading.layout(picture.orientation)
    pixels = np.frombuffer(picture.rgb, np.uint8).reshape(*layout.target, 3)
    return DecodedImage(
        pixels_hw3=pixels,
        key=image_key(pixels),
        size=layout.shown,
        exif_applied=picture.orientation != 1,
        is_animated=picture.is_animated,
        format=reading.name,
        view=layout.view,
    )


def _check_size(size: ImageSize, settings: Settings, param: str) -> None:
    long, short = max(size), min(size)
    if short >= 1 and long > settings.max_image_aspect * short:
        message = f"one side may be at most {settings.max_image_aspect:g} times the other"
        raise ApiError(422, "image_aspect_ratio", message, param=param)
    if short < 1 or long > settings.max_image_side_px:
        message = f"a side must be 1 to {settings.max_image_side_px} pixels"
        raise ApiError(422, "image_dimensions_invalid", message, param=param)
    if size.height * size.width > settings.max_image_pixels:
        raise _refusal("image_too_many_pixels", settings, param)


def _refusal(code: Fault, settings: Settings, param: str) -> ApiError:
    messages: dict[Fault, str] = {
        "image_decode_failed": "the image is damaged",
        "image_decode_timeout": "the image takes too long to decode",
        "image_metadata_too_large": "the image may carry at most "
        f"{settings.max_image_metadata_bytes} bytes of metadata",
        "image_too_many_pixels": f"the image may have at most {settings.max_image_pixels} pixels",
        "image_truncated": "the image ends early",
    }
    return ApiError(422, code, messages[code], param=param)


def too_large(settings: Settings, param: str) -> ApiError:
    """The error for an image file above the byte limit."""
    limit = settings.max_image_bytes
    return ApiError(
        413, "image_too_large", f"the image file may have at most {limit} bytes", param=param
    )


def image_key(pixels_hw3: NDArray[np.uint8]) -> str:
    """A hash of shape and pixels: equal bytes of another shape are another image.

    >>> a = np.zeros((1, 6, 3), np.uint8); image_key(a) == image_key(a.reshape(2, 3, 3))
    False
    """
    digest = hashlib.blake2b(repr(pixels_hw3.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels_hw3).data)
    return digest.hexdigest()
