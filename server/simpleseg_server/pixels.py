"""Image files -> RGB pixels of the size that an engine wants. Imports Pillow and little else, as it
is what runs in the processes that decode (``decode_process.py``).

Colour rules
    - Transparency (alpha channel, transparent palette entry or colour) is composited on white.
    - Palette, grey, 1-bit, CMYK and YCCK pictures become RGB as Pillow converts them: of CMYK,
      R = (255 - C)(255 - K) / 255. Embedded colour profiles are not applied.
    - 16-bit grey is scaled by 255 / 65535. Of 16-bit colour Pillow keeps the high byte.
Geometry
    - EXIF orientation is applied first: all sizes are those of the displayed image.
    - The picture is scaled (bicubic) to the engine's fixed size if it has one, else down to its
      largest area; a part of it is enlarged too, up to a megapixel. Large JPEGs are decoded at a
      reduced scale of at least one and a half times the wanted size: on photographs, 51 to 55 dB
      from the full decode, in a third of the time.
Metadata
    - Texts, EXIF, comments and what programs add, without colour profiles, are limited together.
"""

import io
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from PIL import GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from simpleseg_polygon.geometry import WHOLE, Box, ImageSize
from simpleseg_server.image_headers import is_cut, is_laborious, jpeg_metadata_bytes

FORMATS = tuple(
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        WebPImagePlugin.WebPImageFile,
        GifImagePlugin.GifImageFile,
    )
)
"""Pillow's names of what is read. Naming the plug-ins loads them."""
Fault = Literal[
    "image_decode_failed",
    "image_decode_timeout",
    "image_metadata_too_large",
    "image_too_many_pixels",
    "image_truncated",
]
FAULTS: tuple[Fault, ...] = get_args(Fault)

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
LARGEST_ENLARGED_PX = 2**20
"""Area to which a part of an image is enlarged where the engine takes as much: what is in it is
large then, and more would only cost tokens."""
_PLAIN_MODES = frozenset({"1", "L", "P", "RGB", "CMYK", "YCbCr"})
_JPEG_MARGIN = 1.5
_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "La", "RGBa"})


class PictureError(Exception):
    """Why a file gives no picture; its code is all that is told."""

    def __init__(self, code: Fault) -> None:
        super().__init__(code)
        self.code = code


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
class Reading:
    """A file to read: of the format ``name`` (one of ``FORMATS``) and the size ``stored``, for an
    engine that wants it in a size; of a ``view`` only that part of the displayed image, widened to
    whole pixels."""

    data: bytes
    name: str
    stored: ImageSize
    wanted: EngineSize
    max_metadata_bytes: int
    view: Box = WHOLE

    def layout(self, orientation: int) -> "Layout":
        """Where everything is once the EXIF orientation, 1 to 8, has been applied."""
        swaps = orientation in _SWAPS_SIDES
        shown = ImageSize(*reversed(self.stored)) if swaps else self.stored
        if self.view == WHOLE:
            return Layout(shown, self.wanted.fit(shown), None, WHOLE)
        left, upper, right, lower = _touched(self.view, shown)
        view = Box(
            left / shown.width, upper / shown.height, right / shown.width, lower / shown.height
        )
        part = ImageSize(lower - upper, right - left)
        return Layout(shown, self.wanted.fit_part(part), (left, upper, right, lower), view)


@dataclass(frozen=True)
class Layout:
    """The size of the displayed image, that of the pixels handed on, and the part of the former
    that they show: in its pixels (left, upper, right, lower), None for the whole, and normalised.
    """

    shown: ImageSize
    target: ImageSize
    crop_px: tuple[int, int, int, int] | None
    view: Box


@dataclass(frozen=True)
class Picture:
    """What was read: RGB bytes in rows, of the size ``Reading.layout(orientation).target``.

    ``orientation`` is EXIF's, 1 to 8. ``is_animated``: further frames were left out.
    """

    rgb: bytes | memoryview
    orientation: int
    is_animated: bool


def guard_pillow(max_pixels: int, max_metadata_bytes: int) -> None:
    """Make Pillow itself refuse, as an error and not a warning, what exceeds the limits.

    The second line behind the header's size, for frames and texts that grow after it. Pillow's
    other warnings are about hostile metadata, which is nothing for the server's log. It holds for
    the process: ``warnings.catch_warnings`` is not safe in worker threads.
    """
    Image.MAX_IMAGE_PIXELS = max_pixels
    PngImagePlugin.MAX_TEXT_MEMORY = max_metadata_bytes
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def read_picture(reading: Reading) -> Picture:
    """Decode a file; blocks for milliseconds to seconds. Raises PictureError."""
    try:
        return _read(reading)
    except PictureError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PictureError("image_too_many_pixels") from None
    except Exception:
        # Decoders raise OSError, SyntaxError, struct.error, ValueError, MemoryError and more.
        cut = is_cut(reading.data, reading.name)
        raise PictureError("image_truncated" if cut else "image_decode_failed") from None


def _read(reading: Reading) -> Picture:
    if is_laborious(reading.data, reading.name):
        raise PictureError("image_decode_timeout")
    # Pillow joins the parts of a JPEG's metadata in time that grows with their square.
    if reading.name == "JPEG" and jpeg_metadata_bytes(reading.data) > reading.max_metadata_bytes:
        raise PictureError("image_metadata_too_large")
    with Image.open(io.BytesIO(reading.data), formats=[reading.name]) as image:
        if (image.height, image.width) != reading.stored:
            raise PictureError("image_decode_failed")
        if reading.view == WHOLE:
            _draft_jpeg(image, reading.wanted)
        image.load()
        if sum(_metadata(image)) > reading.max_metadata_bytes:
            raise PictureError("image_metadata_too_large")
        orientation = _orientation(image)
        # A JPEG has further images at other sizes, such as a preview, but no frames.
        is_animated = reading.name != "JPEG" and getattr(image, "is_animated", False)
        rgb = _to_rgb(image)
    if orientation in _TURNS:
        rgb = rgb.transpose(_TURNS[orientation])
    layout = reading.layout(orientation)
    if layout.crop_px is not None:
        rgb = rgb.crop(layout.crop_px)
    if (rgb.height, rgb.width) != layout.target:
        size = (layout.target.width, layout.target.height)
        rgb = rgb.resize(size, Image.Resampling.BICUBIC)
    return Picture(rgb.tobytes(), orientation, is_animated)


def _touched(view: Box, size: ImageSize) -> tuple[int, int, int, int]:
    """The pixels that a view touches: left, upper, right, lower."""
    left, upper = math.floor(view.x0 * size.width), math.floor(view.y0 * size.height)
    right = min(size.width, max(left + 1, math.ceil(view.x1 * size.width)))
    lower = min(size.height, max(upper + 1, math.ceil(view.y1 * size.height)))
    return left, upper, right, lower


def _draft_jpeg(image: Image.Image, wanted: EngineSize) -> None:
    """Let the JPEG decoder skip detail that scaling down would throw away."""
    height, width = wanted.fit(ImageSize(image.height, image.width))
    if wanted.input_hw is not None:
        # The orientation is not known yet: either side may become the other.
        height = width = max(height, width)
    image.draft(None, (math.ceil(_JPEG_MARGIN * width), math.ceil(_JPEG_MARGIN * height)))


def _metadata(image: Image.Image) -> Iterator[int]:
    """The bytes of everything that is not picture, without colour profiles."""
    found = ((name, data) for name, data in image.info.items() if name != "icc_profile")
    yield from (len(data) for _, data in found if isinstance(data, str | bytes))


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 where it is absent, invalid or unreadable."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # hostile metadata must not lose a good picture
        return 1
    return int(value) if value in _TURNS else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Rounded: no sixteen-bit level lies half-way between two of eight bits.
        scaled = image.point(lambda level: level * (255 / 65535) + 0.5)
        return scaled.convert("L").convert("RGB")
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    if image.mode not in _PLAIN_MODES:
        raise ValueError(image.mode)
    return image if image.mode == "RGB" else image.convert("RGB")
