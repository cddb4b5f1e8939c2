"""What callers may pass as an image, and what is sent for it."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simpleseg.errors import InvalidInputError
from simpleseg.image_input import SentImage, sent_image

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
EXIF_ORIENTATION = 0x0112
ROTATED = 6  # the stored picture must be turned a quarter clockwise to be displayed


def _decoded(sent: SentImage) -> Image.Image:
    assert sent.base64 is not None
    return Image.open(io.BytesIO(base64.b64decode(sent.base64)))


def test_files_are_sent_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(PIXELS).save(path)
    content = path.read_bytes()
    for image in (path, str(path), content):
        assert base64.b64decode(sent_image(image).base64 or "") == content


def test_arrays_and_pictures_are_sent_as_png() -> None:
    for image in (PIXELS, PIXELS[:, ::-1][:, ::-1], Image.fromarray(PIXELS)):
        picture = _decoded(sent_image(image))
        assert picture.format == "PNG"
        assert np.array_equal(np.asarray(picture), PIXELS)
    grey = _decoded(sent_image(PIXELS[..., 0]))
    assert np.array_equal(np.asarray(grey), PIXELS[..., 0])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "F", "HSV"])
def test_any_mode_can_be_sent_and_transparency_is_kept(mode: str) -> None:
    sent = _decoded(sent_image(Image.new(mode, (3, 2))))
    assert sent.size == (3, 2)
    assert sent.has_transparency_data == (mode in ("LA", "RGBA"))


def test_a_url_is_sent_as_a_url() -> None:
    sent = sent_image("https://example.com/a.png")
    assert sent == SentImage(url="https://example.com/a.png")


def test_a_rotated_picture_is_sent_and_drawn_as_displayed() -> None:
    stored = Image.fromarray(PIXELS)
    exif = stored.getexif()
    exif[EXIF_ORIENTATION] = ROTATED
    buffer = io.BytesIO()
    stored.save(buffer, format="PNG", exif=exif)
    sent = sent_image(Image.open(io.BytesIO(buffer.getvalue())))
    assert _decoded(sent).size == (2, 3)
    from_file = sent_image(buffer.getvalue())
    for opened in (sent.open_image, from_file.open_image):
        assert opened is not None
        assert np.array_equal(np.asarray(opened()), np.rot90(PIXELS, -1))


@pytest.mark.parametrize(
    "image",
    [PIXELS.astype(np.float32), PIXELS[..., :2], np.zeros((2, 2, 2, 3), np.uint8), 7, None],
    ids=["float", "two channels", "four axes", "number", "nothing"],
)
def test_anything_else_is_refused(image: object) -> None:
    with pytest.raises(InvalidInputError):
        sent_image(image)  # type: ignore[arg-type]


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sent_image(tmp_path / "nowhere.png")
