"""Image files from strangers -> RGB arrays of a size that the engine wants.

Read are JPEG, PNG, WebP and GIF, told apart by their first bytes, never by a name or a declared
type. Of an animation the first frame counts. The size in the header is checked before any pixel is
decoded.

Colour rules
    - Transparency (alpha channel, transparent palette entry or colour) is composited on white.
    - Palette, grey, 1-bit, CMYK and YCCK pictures become RGB as Pillow converts them; embedded
      colour profiles are not applied.
    - 16-bit grey is scaled by 255 / 65535. Of 16-bit colour Pillow keeps the high byte.
Geometry
    - EXIF orientation is applied first: all sizes are those of the displayed image.
    - The picture is scaled (bicubic) to the engine's fixed size if it has one, else down to its
      largest area; a part of it is enlarged too, up to a megapixel. Large JPEGs are decoded at a
      reduced scale of at least twice the wanted size.
"""

import binascii
import hashlib
import io
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from simpleseg_polygon.geometry import WHOLE, Box, ImageSize
from simpleseg_server.config import Settings
from simpleseg_server.errors import ApiError, image_url_blocked

_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = frozenset({5, 6, 7, 8})
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.=+-]+)*?)(;base64)?", re.ASCII)
_MAX_DATA_URL_HEAD = 256
_BASE64_SLICE = 2**18
"""Characters, a multiple of four."""
LARGEST_ENLARGED_PX = 2**20
"""Area to which a part of an image is enlarged where the engine takes as much: what is in it is
large then, and more would only cost tokens."""
_PLAIN_MODES = frozenset({"1", "L", "P", "RGB", "CMYK", "YCbCr"})
_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "La", "RGBa"})


@dataclass(frozen=True)
class EngineSize:
    """The size that an engine wants: exactly ``input_hw``, or at most ``max_pixels`` of area."""

    max_pixels: int
    input_hw: tuple[int, int] | None = None

    def fit(self, size: ImageSize) -> ImageSize:
        """The size to hand to the engine for a displayed image of ``size``.

        >>> EngineSize(max_pixels=5000).fit(ImageSize(100, 200))
        ImageSize(height=50, width=100)
        """
        return self._scaled(size, size.height * size.width)

    def fit_part(self, size: ImageSize) -> ImageSize:
        """The same for a part of an image: a small one is enlarged, so that more of the engine's
        patches see it.

        >>> EngineSize(max_pixels=5000).fit_part(ImageSize(10, 20))
        ImageSize(height=50, width=100)
        """
        return self._scaled(size, max(size.height * size.width, LARGEST_ENLARGED_PX))

    def _scaled(self, size: ImageSize, area: int) -> ImageSize:
        if self.input_hw is not None:
            return ImageSize(*self.input_hw)
        scale = math.sqrt(min(area, self.max_pixels) / (size.height * size.width))
        if scale == 1:
            return size
        return ImageSize(max(1, int(size.height * scale)), max(1, int(size.width * scale)))


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


def install_bomb_guard(max_image_pixels: int) -> None:
    """Make Pillow itself refuse, as an error and not a warning, what exceeds the limit.

    The second line behind ``_check_size``, for frames and metadata that grow after the header.
    Pillow's other warnings are about hostile metadata, which is nothing for the server's log.
    The filters hold for the process: ``warnings.catch_warnings`` is not safe in worker threads.
    """
    Image.MAX_IMAGE_PIXELS = max_image_pixels
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def sniff(data: bytes) -> str | None:
    """Pillow's name of the format that the first bytes promise, or None if it is not read here.

    >>> sniff(b"GIF89a..."), sniff(b"%PDF-1.7")
    ('GIF', None)
    """
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def decode(
    data: bytes, wanted: EngineSize, settings: Settings, param: str, view: Box = WHOLE
) -> DecodedImage:
    """Decode an image file; blocks for milliseconds to seconds, so call it in a worker thread.

    Of a ``view`` only that part of the displayed image is handed to the engine, widened to whole
    pixels.

    Raises ApiError: 413 image_too_large; 415 image_type_unsupported; 422 image_empty,
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
    try:
        return _decode(data, name, wanted, settings, param, view)
    except ApiError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(settings, param) from None
    except Exception:
        # Decoders raise OSError, SyntaxError, struct.error, ValueError, EOFError and more.
        if _is_cut(data, name):
            raise ApiError(422, "image_truncated", "the image ends early", param=param) from None
        raise ApiError(422, "image_decode_failed", "the image is damaged", param=param) from None


def _decode(
    data: bytes, name: str, wanted: EngineSize, settings: Settings, param: str, view: Box
) -> DecodedImage:
    with Image.open(io.BytesIO(data), formats=[name]) as image:
        stored = ImageSize(image.height, image.width)
        _check_size(stored, settings, param)
        if view == WHOLE:
            _draft_jpeg(image, wanted)
        image.load()
        orientation = _orientation(image)
        is_animated = getattr(image, "is_animated", False)
        rgb = _to_rgb(image)
    size = ImageSize(*reversed(stored)) if orientation in _SWAPS_SIDES else stored
    if orientation in _TURNS:
        rgb = rgb.transpose(_TURNS[orientation])
    if view != WHOLE:
        rgb, view = _cut_out(rgb, view)
    shown = ImageSize(rgb.height, rgb.width)
    target = wanted.fit(size) if view == WHOLE else wanted.fit_part(shown)
    if (rgb.height, rgb.width) != target:
        rgb = rgb.resize((target.width, target.height), Image.Resampling.BICUBIC)
    pixels = np.asarray(rgb)
    return DecodedImage(
        pixels_hw3=pixels,
        key=image_key(pixels),
        size=size,
        exif_applied=orientation in _TURNS,
        is_animated=is_animated,
        format=name,
        view=view,
    )


def _cut_out(image: Image.Image, view: Box) -> tuple[Image.Image, Box]:
    """The pixels that a view touches, and the view that they fill."""
    width, height = image.size
    left, upper = math.floor(view.x0 * width), math.floor(view.y0 * height)
    right = min(width, max(left + 1, math.ceil(view.x1 * width)))
    lower = min(height, max(upper + 1, math.ceil(view.y1 * height)))
    filled = Box(left / width, upper / height, right / width, lower / height)
    return image.crop((left, upper, right, lower)), filled


def _draft_jpeg(image: Image.Image, wanted: EngineSize) -> None:
    """Let the JPEG decoder skip detail that scaling down would throw away."""
    height, width = wanted.fit(ImageSize(image.height, image.width))
    if wanted.input_hw is not None:
        # The orientation is not known yet: either side may become the other.
        height = width = max(height, width)
    image.draft(None, (2 * width, 2 * height))


def _check_size(size: ImageSize, settings: Settings, param: str) -> None:
    long, short = max(size), min(size)
    if short < 1 or long > settings.max_image_side_px:
        limit = settings.max_image_side_px
        raise ApiError(
            422, "image_dimensions_invalid", f"a side must be 1 to {limit} pixels", param=param
        )
    if size.height * size.width > settings.max_image_pixels:
        raise _too_many_pixels(settings, param)
    if long > settings.max_image_aspect * short:
        limit_ratio = settings.max_image_aspect
        raise ApiError(
            422,
            "image_aspect_ratio",
            f"one side may be at most {limit_ratio:g} times the other",
            param=param,
        )


def _too_many_pixels(settings: Settings, param: str) -> ApiError:
    limit = settings.max_image_pixels
    return ApiError(
        422, "image_too_many_pixels", f"the image may have at most {limit} pixels", param=param
    )


def too_large(settings: Settings, param: str) -> ApiError:
    """The error for an image file above the byte limit."""
    limit = settings.max_image_bytes
    return ApiError(
        413, "image_too_large", f"the image file may have at most {limit} bytes", param=param
    )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 where it is absent, invalid or unreadable."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # hostile metadata must not lose a good picture
        return 1
    return int(value) if value in _TURNS else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode not in _PLAIN_MODES:
        raise ValueError(image.mode)
    return image.convert("RGB")


def _is_cut(data: bytes, name: str) -> bool:
    """Whether the end that the format demands is missing; only asked about undecodable files."""
    if name == "JPEG":
        return b"\xff\xd9" not in data[-1024:]
    if name == "PNG":
        return b"IEND" not in data[-1024:]
    if name == "WEBP":
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    return not data.rstrip(b"\0").endswith(b";")


def image_key(pixels_hw3: NDArray[np.uint8]) -> str:
    """A hash of shape and pixels: equal bytes of another shape are another image.

    >>> a = np.zeros((1, 6, 3), np.uint8); image_key(a) == image_key(a.reshape(2, 3, 3))
    False
    """
    digest = hashlib.blake2b(repr(pixels_hw3.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels_hw3).data)
    return digest.hexdigest()


def decode_base64(text: str, settings: Settings, param: str) -> bytes:
    """The bytes of strict base64 (no white space, with padding); the size is checked first.

    Raises ApiError: 400 image_base64_invalid; 413 image_too_large.
    """
    if len(text) > (settings.max_image_bytes + 2) // 3 * 4:
        raise too_large(settings, param)
    try:
        return b"".join(_decode_slices(text))
    except ValueError:
        raise ApiError(
            400, "image_base64_invalid", "the image is not valid base64", param=param
        ) from None


def _decode_slices(text: str) -> Iterator[bytes]:
    """Decode slice by slice: one call on a large text would hold the interpreter for 100s of ms.

    Raises ValueError, also for padding before the end.
    """
    for start in range(0, max(len(text), 1), _BASE64_SLICE):
        data = binascii.a2b_base64(text[start : start + _BASE64_SLICE], strict_mode=True)
        if start + _BASE64_SLICE < len(text) and len(data) != _BASE64_SLICE // 4 * 3:
            raise ValueError("padding before the end")
        yield data


def is_data_url(url: str) -> bool:
    return url[:5].lower() == "data:"


def decode_data_url(url: str, settings: Settings, param: str) -> tuple[bytes, str | None]:
    """The bytes of a ``data:`` URL and the media type that it declares.

    Raises ApiError as ``decode_base64`` does, 400 image_url_invalid, 415 image_type_unsupported,
    and 422 image_url_blocked for another URL.
    """
    if not is_data_url(url):
        raise image_url_blocked(param)
    head, comma, payload = url.partition(",")
    match = _DATA_URL.fullmatch(head) if len(head) <= _MAX_DATA_URL_HEAD else None
    if not comma or match is None or match[3] is None:
        raise ApiError(
            400, "image_url_invalid", "a data URL must read data:image/...;base64,...", param=param
        )
    declared = match[1]
    if declared and not declared.startswith("image/") and declared != "application/octet-stream":
        raise ApiError(
            415, "image_type_unsupported", "the data URL does not declare an image", param=param
        )
    return decode_base64(payload, settings, param), declared


def is_mismatch(declared: str | None, format_name: str) -> bool:
    """Whether a declared media type names another image format than the bytes.

    >>> is_mismatch("image/png", "JPEG"), is_mismatch("image/jpg", "JPEG"), is_mismatch(None, "PNG")
    (True, False, False)
    """
    if not declared or not declared.startswith("image/"):
        return False
    subtype = declared.removeprefix("image/").lower().replace("jpg", "jpeg").removeprefix("x-")
    return subtype not in (format_name.lower(), "*")
