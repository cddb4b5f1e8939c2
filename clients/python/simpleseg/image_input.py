"""Images as callers have them -> what the request carries, and what an overlay is drawn on."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from simpleseg.errors import InvalidInputError
from simpleseg.schema import ImageInput as ImageField
from simpleseg.schema import UploadedImage

ImageInput = str | Path | bytes | Image.Image | NDArray[np.uint8] | UploadedImage
"""A path, a URL for the server to read, a file's bytes, a PIL image, a uint8 array, or an image
that was uploaded."""

_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")
"""Of image files; more than any server reads, so that only what is surely none is refused here."""
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})


@dataclass(frozen=True)
class SentImage:
    """An image ready to be sent: one of ``url``, ``base64`` and ``id`` is set.

    ``open_image`` gives the displayed image (EXIF orientation applied); None where only the server
    has it.
    """

    url: str | None = None
    base64: str | None = None
    id: str | None = None
    open_image: Callable[[], Image.Image] | None = None

    def field(self) -> ImageField:
        """The image as a request has it."""
        return ImageField(url=self.url, base64=self.base64, id=self.id)


def sent_image(image: ImageInput) -> SentImage:
    """Whatever the caller has, encoded once.

    Files and bytes go as they are; pictures and arrays, of shape (height, width), (height, width,
    3) or (height, width, 4), go as PNG.

    Raises OSError for an unreadable path, InvalidInputError for what is not an image input or an
    image file.
    """
    match image:
        case str() if image.startswith(("http://", "https://", "data:")):
            return SentImage(url=image)
        case UploadedImage():
            return SentImage(id=image.id)
        case str() | Path():
            return _from_file(Path(image).read_bytes())
        case bytes():
            return _from_file(image)
        case Image.Image():
            return _from_picture(ImageOps.exif_transpose(image))
        case np.ndarray():
            return _from_picture(_from_array(image))
    raise InvalidInputError(
        "an image is a path, a URL, bytes, a PIL image, a numpy array or an uploaded image, "
        f"not {type(image).__name__}"
    )


def _from_file(content: bytes) -> SentImage:
    if not content.startswith(_BEGINNINGS) and content[4:8] != b"ftyp":
        what = "is not an image" if content else "is empty"
        raise InvalidInputError(f"the image file {what}")

    def open_image() -> Image.Image:
        with Image.open(io.BytesIO(content)) as picture:
            return ImageOps.exif_transpose(picture)

    return SentImage(base64=base64.b64encode(content).decode("ascii"), open_image=open_image)


def _from_picture(picture: Image.Image) -> SentImage:
    buffer = io.BytesIO()
    storable = picture if picture.mode in _PNG_MODES else picture.convert("RGB")
    storable.save(buffer, format="PNG", compress_level=1)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return SentImage(base64=encoded, open_image=picture.copy)


def _from_array(pixels: NDArray[np.uint8]) -> Image.Image:
    grey = pixels.ndim == 2
    color = pixels.ndim == 3 and pixels.shape[2] in (3, 4)
    if pixels.dtype != np.uint8 or not (grey or color):
        raise InvalidInputError(
            "expected a uint8 array of shape (h, w), (h, w, 3) or (h, w, 4), "
            f"got {pixels.dtype} of shape {pixels.shape}"
        )
    return Image.fromarray(np.ascontiguousarray(pixels))
