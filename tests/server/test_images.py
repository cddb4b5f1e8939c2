"""Images from strangers: the right picture or a clear refusal, before costly work."""

import base64
import io
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simpleseg_polygon.geometry import WHOLE, Box, ImageSize
from simpleseg_server.config import Settings
from simpleseg_server.data_urls import decode_base64, decode_data_url
from simpleseg_server.errors import ApiError
from simpleseg_server.image_headers import sniff
from simpleseg_server.images import DecodedImage, decode, image_key, judged
from simpleseg_server.pixels import EngineSize, guard_pillow

SETTINGS = Settings()
LARGE = EngineSize(max_pixels=10**9)
FORMATS = ["JPEG", "PNG", "WEBP", "GIF"]


def encoded(image: Image.Image, format_name: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def read(
    data: bytes, wanted: EngineSize = LARGE, settings: Settings = SETTINGS, view: Box = WHOLE
) -> DecodedImage:
    guard_pillow(settings.max_image_pixels, settings.max_image_metadata_bytes)
    return decode(judged(data, wanted, settings, "image", view), settings, "image")


def refusal(data: bytes, settings: Settings = SETTINGS) -> tuple[int, str]:
    with pytest.raises(ApiError) as caught:
        read(data, settings=settings)
    assert caught.value.param == "image"
    return caught.value.status, caught.value.code


def noise(width: int = 96, height: int = 64) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0"))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def webp_header(width: int, height: int) -> bytes:
    """A lossless WebP that promises a size and holds next to nothing."""
    bits = 0x2F | (width - 1) << 8 | (height - 1) << 22
    body = b"VP8L" + struct.pack("<I", 14) + bits.to_bytes(5, "little") + bytes(9)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_at_its_displayed_size(name: str) -> None:
    image = read(encoded(Image.new("RGB", (40, 20), (200, 30, 30)), name))
    assert image.size == ImageSize(20, 40)
    assert image.pixels_hw3.shape == (20, 40, 3)
    assert np.abs(image.pixels_hw3.astype(int) - (200, 30, 30)).max() <= 6
    assert (image.format, image.exif_applied) == (name, False)


@pytest.mark.parametrize(
    "data",
    [
        b"%PDF-1.7",
        b"<svg/>",
        b"BM" + bytes(60),
        b"PK\x03\x04",
        b"II*\0" + bytes(60),
        b"hello",
        b"\0",
    ],
)
def test_other_types_are_refused_by_their_first_bytes(data: bytes) -> None:
    assert refusal(data) == (415, "image_type_unsupported")


def test_no_bytes_and_too_many_bytes() -> None:
    assert refusal(b"") == (422, "image_empty")
    small = Settings(max_image_bytes=10)
    assert refusal(encoded(noise()), small) == (413, "image_too_large")


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in FORMATS), ("JPEG", {"progressive": True})]
)
@pytest.mark.parametrize("sixteenth", range(1, 16))
def test_a_cut_file_is_never_a_half_grey_picture(
    name: str, options: dict[str, Any], sixteenth: int
) -> None:
    data = encoded(noise(), name, **options)
    status, code = refusal(data[: len(data) * sixteenth // 16])
    assert status == 422
    # A cut GIF may end in the byte that ends a whole one, and then counts as damaged.
    assert code in ("image_truncated", *(["image_decode_failed"] if name == "GIF" else []))


def test_damaged_pixels_are_refused() -> None:
    data = bytearray(encoded(noise()))
    data[len(data) // 2] ^= 0xFF
    assert refusal(bytes(data)) == (422, "image_decode_failed")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (png_header(13_000, 13_000), "image_too_many_pixels"),
        (png_header(30_000, 30_000), "image_too_many_pixels"),
        (webp_header(16_383, 10_000), "image_too_many_pixels"),
        (png_header(65_535, 65_535), "image_dimensions_invalid"),
        (png_header(60_000, 1), "image_aspect_ratio"),
        (png_header(1, 30_000), "image_aspect_ratio"),
    ],
)
def test_bombs_are_refused_from_their_header(data: bytes, code: str) -> None:
    read(encoded(noise()))  # Pillow's plugins are loaded
    tracemalloc.start()
    status, found = refusal(data)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (status, found) == (422, code)
    assert peak_bytes < 4 * 2**20


def test_a_gif_frame_larger_than_its_canvas_is_a_bomb_too() -> None:
    canvas = struct.pack("<HHBBB", 10, 10, 0x80, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, 60_000, 60_000, 0) + b"\x02\x02\x4c\x01\x00;"
    status, code = refusal(b"GIF89a" + canvas + frame)
    assert status == 422
    assert code in ("image_too_many_pixels", "image_dimensions_invalid")


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    for name in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], name, save_all=True, append_images=frames[1:])
        image = read(data)
        assert image.is_animated, name
        assert image.pixels_hw3[4, 4, 0] > 250, name
        assert image.pixels_hw3[4, 4, 1] < 5, name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    marked = np.zeros((16, 32, 3), np.uint8)
    marked[:8, :8] = 255  # the corner that the orientation moves
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read(encoded(Image.fromarray(marked), "PNG", exif=exif))
    upper = orientation in (1, 2, 5, 6)
    left = orientation in (1, 4, 5, 8)
    assert image.size == (ImageSize(32, 16) if orientation >= 5 else ImageSize(16, 32))
    assert image.pixels_hw3[2 if upper else -2, 2 if left else -2].min() == 255
    assert image.exif_applied is (orientation != 1)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_invalid_orientation_is_none(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read(encoded(noise(), "JPEG", exif=exif))
    assert (image.size, image.exif_applied) == (ImageSize(64, 96), False)


def test_broken_exif_does_not_lose_the_picture() -> None:
    data = encoded(noise(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + bytes(20))
    assert read(data).size == ImageSize(64, 96)


def test_transparency_is_composited_on_white() -> None:
    clear_red = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half_black = Image.new("LA", (4, 4), (0, 128))
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    assert read(encoded(clear_red)).pixels_hw3.min() == 255
    assert np.abs(read(encoded(half_black)).pixels_hw3.astype(int) - 127).max() <= 1
    assert read(encoded(palette, transparency=1)).pixels_hw3.min() == 255
    keyed = encoded(Image.new("RGB", (4, 4), (9, 9, 9)), transparency=(9, 9, 9))
    assert read(keyed).pixels_hw3.min() == 255


def test_sixteen_bit_grey_keeps_its_brightness() -> None:
    half = Image.fromarray(np.full((4, 4), 32768, np.uint16))
    assert set(read(encoded(half)).pixels_hw3.flat) == {128}
    white = Image.fromarray(np.full((4, 4), 65535, np.uint16))
    assert set(read(encoded(white)).pixels_hw3.flat) == {255}


def test_cmyk_palette_and_one_bit_become_rgb() -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert (
        np.abs(read(encoded(cyan, "JPEG")).pixels_hw3[8, 8].astype(int) - (0, 255, 255)).max() < 8
    )
    bits = Image.new("1", (4, 4), 1)
    assert read(encoded(bits)).pixels_hw3.min() == 255
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 1, 2, 3])
    assert read(encoded(palette)).pixels_hw3[0, 0].tolist() == [1, 2, 3]


def test_scaling_stretches_to_a_fixed_size_and_keeps_the_original_size() -> None:
    image = read(encoded(noise()), EngineSize(max_pixels=100, input_hw=(128, 112)))
    assert image.pixels_hw3.shape == (128, 112, 3)
    assert image.size == ImageSize(64, 96)


def test_scaling_down_keeps_the_aspect_and_never_scales_up() -> None:
    assert read(encoded(noise()), EngineSize(max_pixels=96 * 16)).pixels_hw3.shape == (32, 48, 3)
    assert read(encoded(noise()), EngineSize(max_pixels=10**6)).pixels_hw3.shape == (64, 96, 3)


@pytest.mark.parametrize("wanted", [(160, 120), (500, 375)])
def test_a_large_jpeg_is_drafted_close_to_the_full_decode(wanted: tuple[int, int]) -> None:
    width, height = wanted
    ramp = np.linspace(0, 255, 1600).astype(np.uint8)
    picture = Image.fromarray(np.broadcast_to(ramp[None, :, None], (1200, 1600, 3)).copy())
    picture = picture.transpose(Image.Transpose.ROTATE_90)
    drafted = read(encoded(picture, "JPEG", quality=95), EngineSize(max_pixels=width * height))
    full = np.asarray(picture.resize((height, width), Image.Resampling.BICUBIC))
    assert drafted.size == ImageSize(1600, 1200)
    assert drafted.pixels_hw3.shape == full.shape
    assert np.abs(drafted.pixels_hw3.astype(int) - full).max() <= 4


def test_keys_tell_shapes_and_pixels_apart() -> None:
    zeros = np.zeros((30, 100, 3), np.uint8)
    assert image_key(zeros) != image_key(zeros.reshape(100, 30, 3))
    assert image_key(zeros) == image_key(zeros.copy())
    assert image_key(zeros) != image_key(zeros + 1)


def test_trailing_bytes_are_ignored_and_leading_ones_are_not() -> None:
    data = encoded(noise(), "JPEG")
    assert read(data + b"PK\x03\x04" * 100).size == ImageSize(64, 96)
    assert sniff(b"<script>" + data) is None


@pytest.mark.parametrize(
    "text", ["a", "aGk", "aGk=\n", "aG k=", "a-_=", "=" * 8, "aGk=aGk=", "é==="]
)
def test_base64_is_strict(text: str) -> None:
    with pytest.raises(ApiError) as caught:
        decode_base64(text, SETTINGS, "image")
    assert (caught.value.status, caught.value.code) == (400, "image_base64_invalid")


def test_large_base64_is_decoded_whole_and_padding_inside_is_refused() -> None:
    data = np.random.default_rng(0).bytes(1_000_000)
    text = base64.b64encode(data).decode()
    assert decode_base64(text, SETTINGS, "image") == data
    for length in (2**18 - 4, 2**18):
        early = text[: length - 4] + "QQ==" + text[length:]
        with pytest.raises(ApiError):
            decode_base64(early, SETTINGS, "image")


def test_base64_size_is_checked_before_decoding() -> None:
    with pytest.raises(ApiError) as caught:
        decode_base64("=" * 20, Settings(max_image_bytes=9), "image")
    assert (caught.value.status, caught.value.code) == (413, "image_too_large")


@pytest.mark.parametrize(
    ("url", "status", "code"),
    [
        ("http://10.0.0.1/x.png", 422, "image_url_blocked"),
        ("file:///etc/passwd", 422, "image_url_blocked"),
        ("data:image/png;base64", 400, "image_url_invalid"),
        ("data:image/png,abc", 400, "image_url_invalid"),
        ("data:image/png" + ";a=b" * 1000 + ";base64,aGk=", 400, "image_url_invalid"),
        ("data:text/html;base64,aGk=", 415, "image_type_unsupported"),
        ("data:image/png;base64,data:image/png;base64,aGk=", 400, "image_base64_invalid"),
    ],
)
def test_urls_that_are_not_read(url: str, status: int, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        decode_data_url(url, SETTINGS, "image.url")
    assert (caught.value.status, caught.value.code) == (status, code)


def test_data_urls_give_bytes_and_declared_type() -> None:
    payload = base64.b64encode(b"hi").decode()
    assert decode_data_url(f"data:image/png;base64,{payload}", SETTINGS, "i") == (
        b"hi",
        "image/png",
    )
    assert decode_data_url(f"data:;base64,{payload}", SETTINGS, "i") == (b"hi", None)
    assert decode_data_url(f"data:image/jpeg;x=y;base64,{payload}", SETTINGS, "i")[0] == b"hi"


def test_a_view_shows_that_part_alone_in_whole_pixels() -> None:
    picture = Image.new("RGB", (10, 20), "red")
    picture.paste("blue", (4, 10, 10, 20))
    data = encoded(picture)
    part = read(data, EngineSize(10 * 5), view=Box(0.45, 0.52, 0.89, 0.98))
    assert part.view == Box(0.4, 0.5, 0.9, 1.0)
    assert part.pixels_hw3.shape == (10, 5, 3)
    assert (part.pixels_hw3 == (0, 0, 255)).all()
    assert part.size == ImageSize(20, 10)
    assert part.key != read(data).key
