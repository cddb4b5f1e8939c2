"""Section A of the catalogue: image files that are read, looked at where they reach the engine."""

import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms
from starlette.testclient import TestClient

from simpleseg_server.app import create_app
from simpleseg_server.config import Settings
from simpleseg_server.engines.scripted import ScriptedEngine

from . import image_files as make
from . import image_reference as reference
from .image_bombs import refusal

PICTURE = make.noise()
ANSWER = "[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]]."
RAMP = np.arange(256, dtype=np.uint8)


@dataclass(frozen=True)
class Seen:
    """An answer, and what the engine was given; both of the last request."""

    body: dict[str, Any]
    pixels: NDArray[np.uint8]
    key: str

    @property
    def codes(self) -> list[str]:
        return [warning["code"] for warning in self.body["warnings"]]


@dataclass(frozen=True)
class App:
    """The application with its decoders, and an engine that keeps what it is given."""

    client: TestClient
    engine: ScriptedEngine

    def post(self, data: bytes, name: str = "x", kind: str = "", **form: str) -> Any:
        file = (name, data, kind) if kind else (name, data)
        form = {"prompt": "a dog", "return": "polygons,rle", **form}
        return self.client.post("/segment", files={"image": file}, data=form)

    def see(self, data: bytes, **options: str) -> Seen:
        response = self.post(data, **options)
        assert response.status_code == 200, response.text
        request = self.engine.requests[-1]
        return Seen(response.json(), request.image_hw3, request.image_key)


@pytest.fixture(scope="module")
def app() -> Iterator[App]:
    engine = ScriptedEngine([ANSWER])
    with TestClient(create_app(Settings(), engine)) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.01)
        yield App(client, engine)


def difference(one: NDArray[Any], other: NDArray[Any]) -> int:
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other).max())


def test_A4_the_bytes_decide(app: App) -> None:
    seen = app.see(make.encoded(PICTURE), name="holiday.jpg", kind="image/jpeg")
    assert seen.codes == ["mime_mismatch"]
    assert difference(seen.pixels, np.asarray(PICTURE)) == 0
    assert app.see(make.encoded(PICTURE), name="holiday.jpg", kind="image/png").codes == []


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP"])
def test_A13_of_an_animation_the_first_frame(app: App, name: str) -> None:
    first, *others = frames = [make.noise(seed=seed) for seed in range(3)]
    options = {"lossless": True} if name == "WEBP" else {}
    data = make.encoded(first, name, save_all=True, append_images=others, **options)
    still = make.encoded(first, name, **options)
    seen = app.see(data)
    assert seen.codes == ["animated_first_frame"]
    assert difference(seen.pixels, app.see(still).pixels) == 0
    if name == "GIF":
        assert difference(seen.pixels, np.asarray(frames[0])) > 0  # it has 256 colours
    else:
        assert difference(seen.pixels, np.asarray(frames[0])) == 0
    damaged = bytearray(data)
    damaged[-3000:-2000] = bytes(1000)  # within the last frame, which nobody looks at
    assert difference(app.see(bytes(damaged)).pixels, seen.pixels) == 0


INKS = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [10, 200, 90, 30], [90, 30, 10, 200]]], np.uint8)


def flat(inks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Large enough fields that JPEG loses nothing of their colour."""
    return np.repeat(np.repeat(inks, 32, 0), 32, 1)


def test_A14_cmyk(app: App) -> None:
    inks = flat(INKS)
    data = make.encoded(Image.fromarray(inks, "CMYK"), "JPEG", quality=100, subsampling=0)
    assert difference(app.see(data).pixels, reference.of_cmyk(inks)) <= 2


def test_A14_ycck(app: App) -> None:
    """The file holds inks inverted; YCCK is that with the first three as YCbCr of what is left."""
    inks = flat(INKS)
    ycc = np.asarray(Image.fromarray(inks[..., :3], "RGB").convert("YCbCr"))
    stored = np.dstack([255 - ycc, inks[..., 3]])  # Pillow inverts what it writes
    jpeg = make.encoded(Image.fromarray(stored, "CMYK"), "JPEG", quality=100, subsampling=0)
    at = jpeg.index(b"Adobe") + 11
    assert jpeg[at] == 0
    data = jpeg[:at] + b"\2" + jpeg[at + 1 :]
    assert difference(app.see(data).pixels, reference.of_cmyk(inks)) <= 2


def test_A15_sixteen_bits(app: App) -> None:
    grey = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    seen = app.see(make.png_of(grey[..., None]))
    assert difference(seen.pixels, reference.of_grey(grey)) == 0
    assert seen.pixels.mean() == pytest.approx(127.5)
    colour = np.random.default_rng(3).integers(0, 65_536, (64, 96, 3), np.uint16)
    pixels = app.see(make.png_of(colour)).pixels
    assert difference(pixels, reference.of_colour16(colour)) == 0
    assert difference(pixels, np.rint(colour / 257)) <= 1
    tiff = make.encoded(Image.fromarray(grey), "TIFF")
    assert refusal(app.post(tiff)) == (415, "image_type_unsupported")


def test_A16_transparency(app: App) -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (64, 96, 4), np.uint8)
    colour, alpha = pixels[..., :3], pixels[..., 3]
    expected = reference.over_white(colour, alpha)
    assert difference(app.see(make.png_of(pixels)).pixels, expected) <= 1
    webp = make.encoded(Image.fromarray(pixels), "WEBP", lossless=True, exact=True)
    assert difference(app.see(webp).pixels, expected) <= 1
    grey = np.repeat(colour[..., :1], 3, 2)
    of_grey = make.png_of(np.dstack([colour[..., :1], alpha]))
    assert difference(app.see(of_grey).pixels, reference.over_white(grey, alpha)) <= 1
    deep = make.png_of(pixels.astype(np.uint16) * 257)
    assert difference(app.see(deep).pixels, expected) <= 1


def test_A16_transparent_colours(app: App) -> None:
    indices = np.arange(64 * 96, dtype=np.uint8).reshape(64, 96)
    table = np.random.default_rng(5).integers(0, 256, (256, 3), np.uint8)
    alphas = RAMP[::-1]
    picture = Image.fromarray(indices, "P")
    picture.putpalette(table.tobytes())
    data = make.encoded(picture, transparency=alphas.tobytes())
    expected = reference.over_white(table[indices], alphas[indices])
    assert difference(app.see(data).pixels, expected) <= 1
    gif = make.encoded(picture, "GIF", transparency=7, optimize=False)
    hidden = np.where(indices == 7, 0, 255)
    expected = reference.over_white(table[indices], hidden)
    assert difference(app.see(gif).pixels, expected) == 0
    keyed = make.encoded(Image.fromarray(table[indices]), transparency=tuple(table[9].tolist()))
    hidden = np.where((table[indices] == table[9]).all(axis=2), 0, 255)
    expected = reference.over_white(table[indices], hidden)
    assert difference(app.see(keyed).pixels, expected) == 0


def test_A17_palettes_and_few_bits(app: App) -> None:
    indices = np.arange(64 * 96, dtype=np.uint8).reshape(64, 96)
    table = np.random.default_rng(6).integers(0, 256, (256, 3), np.uint8)
    for bits in (1, 2, 4, 8):
        few: NDArray[np.uint8] = indices & np.uint8(2**bits - 1)
        picture = Image.fromarray(few, "P")
        picture.putpalette(table.tobytes())
        seen = app.see(make.encoded(picture, bits=bits))
        assert difference(seen.pixels, table[few]) == 0
        if bits < 8:
            levels = few * (255 // (2**bits - 1))
            each = np.unpackbits(few[..., None], axis=2)[..., -bits:]
            rows = np.packbits(each.reshape(64, -1), axis=1)
            lines = b"".join(b"\0" + row.tobytes() for row in rows)
            data = make.png(96, 64, zlib.compress(lines), bits=bits, colour=0)
            assert difference(app.see(data).pixels, reference.of_grey(levels)) == 0


def test_A17_what_is_not_read(app: App) -> None:
    for mode in ("F", "I", "LAB", "YCbCr"):
        image = PICTURE.convert("L").convert(mode) if mode in "FI" else PICTURE
        image = Image.new(mode, (9, 9)) if mode in ("LAB", "YCbCr") else image
        tiff = make.encoded(image, "TIFF")
        assert refusal(app.post(tiff)) == (415, "image_type_unsupported")


@pytest.mark.parametrize("orientation", [*range(1, 9), 0, 9, 65_535])
def test_A18_orientation(app: App, orientation: int) -> None:
    stored = np.asarray(make.noise(96, 64))
    shown = reference.turned(stored, orientation)
    exif = make.chunk(b"eXIf", make.exif(0, orientation)[6:])
    seen = app.see(make.png_of(stored, before=exif))
    assert difference(seen.pixels, shown) == 0
    size = seen.body["image"]
    assert (size["height"], size["width"]) == shown.shape[:2]
    assert size["exif_applied"] is (2 <= orientation <= 8)
    assert tuple(seen.body["results"][0]["rle"]["size"]) == shown.shape[:2]


def test_A19_colour_profiles(app: App) -> None:
    jpeg = make.encoded(PICTURE, "JPEG")
    plain = app.see(jpeg).pixels
    wide = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    noise = np.random.default_rng(7).bytes(10 * 2**20)
    for profile in (wide, wide[:50], b"\xff" * 1000, noise):
        assert difference(app.see(make.jpeg_with_profile(jpeg, profile)).pixels, plain) == 0
    stored = np.asarray(PICTURE)
    for inflated in (zlib.compress(wide), zlib.compress(noise[:500_000]), b"broken"):
        data = make.png_of(stored, before=make.chunk(b"iCCP", b"a\0\0" + inflated))
        assert difference(app.see(data).pixels, stored) == 0
    huge = make.png_of(stored, before=make.chunk(b"iCCP", b"a\0\0" + zlib.compress(noise)))
    assert refusal(app.post(huge)) == (422, "image_decode_failed")


@pytest.mark.parametrize("side", [1, 2, 27])
def test_A20_tiny_images(app: App, side: int) -> None:
    data = make.encoded(make.noise(side, side))
    one, other = app.see(data), app.see(data)
    assert one.pixels.shape == (side, side, 3)
    assert one.body["results"] == other.body["results"]


def test_A22_black_white_noise(app: App) -> None:
    for image in (Image.new("RGB", (96, 64)), Image.new("RGB", (96, 64), "white"), PICTURE):
        seen = app.see(make.encoded(image))
        assert difference(seen.pixels, np.asarray(image)) == 0
        assert seen.body["results"][0]["status"] == "ok"


def test_A23_equal_bytes_of_another_shape(app: App) -> None:
    pixels = np.random.default_rng(8).integers(0, 256, (30, 100, 3), np.uint8)
    one = app.see(make.png_of(pixels))
    other = app.see(make.png_of(pixels.reshape(100, 30, 3)))
    assert one.pixels.tobytes() == other.pixels.tobytes()
    assert one.key != other.key
    assert one.key == app.see(make.encoded(Image.fromarray(pixels), compress_level=1)).key
