"""Section A of the catalogue: image files from strangers. What is refused is put to a server in a
process of its own; what is read is looked at where it reaches the engine."""

import asyncio
import base64
import signal
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms
from starlette.testclient import TestClient

from simpleseg_server.app import create_app
from simpleseg_server.config import Settings
from simpleseg_server.engines.scripted import ScriptedEngine
from simpleseg_server.image_intake import ImageIntake
from simpleseg_server.pixels import EngineSize
from simpleseg_server.telemetry import Metrics

from . import image_files as make
from . import image_reference as reference
from .canary import Canary, started
from .conftest import MakeCanary
from .image_bombs import Bomb, code_of, corpus, cost, decoders, post

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


def refusal(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, code_of(response)


def work_of_decoders(canary: Canary) -> list[int]:
    """How often each decoder has woken up: it sleeps while nothing is asked of it."""
    return [process.num_ctx_switches().voluntary for process in decoders(canary)]


@pytest.fixture
def undecoded(canary: Canary) -> Iterator[Canary]:
    """A canary whose decoders are not asked for anything."""
    before = work_of_decoders(canary)
    yield canary
    assert work_of_decoders(canary) == before


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return make.noise()


def test_A1_no_bytes(undecoded: Canary) -> None:
    assert refusal(post(undecoded, b"")) == (422, "image_empty")
    assert refusal(undecoded.segment(image={"base64": ""})) == (422, "image_empty")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")),
        ("JPEG", {"progressive": True}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_A2_cut_at_every_sixteenth(
    name: str, options: dict[str, Any], canary: Canary, picture: Image.Image
) -> None:
    data = make.encoded(picture, name, **options)
    found = {refusal(post(canary, data[: len(data) * i // 16])) for i in range(1, 16)}
    if name in ("BMP", "TIFF"):
        assert found == {(415, "image_type_unsupported")}
    elif name == "GIF":  # it may be cut at a byte that ends a whole one, and then is damaged
        assert found <= {(422, "image_truncated"), (422, "image_decode_failed")}
    else:
        assert found == {(422, "image_truncated")}


def test_A3_other_files(undecoded: Canary) -> None:
    others = [
        np.random.default_rng(1).bytes(5000),
        b"plain text",
        b"<!doctype html><img src=x>",
        b"%PDF-1.7\n",
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"\0\0\0\x20ftypisom",
        b"\0\0\0\x20ftypavif",
        b"PK\x03\x04",
        b"\x7fELF",
        b"RIFF\0\0\0\0WAVE",
        b"\xff\xd8",
        b"\x89PNG",
    ]
    found = {refusal(post(undecoded, data)) for data in others}
    assert found == {(415, "image_type_unsupported")}


def test_A4_the_bytes_decide(app: App, picture: Image.Image) -> None:
    seen = app.see(make.encoded(picture), name="holiday.jpg", kind="image/jpeg")
    assert seen.codes == ["mime_mismatch"]
    assert difference(seen.pixels, np.asarray(picture)) == 0
    assert app.see(make.encoded(picture), name="holiday.jpg", kind="image/png").codes == []


def test_A5_two_things_at_once(canary: Canary, picture: Image.Image) -> None:
    jpeg, png = make.encoded(picture, "JPEG"), make.encoded(picture)
    script = b"=1;alert(1)//"
    gif = make.gif((9, 9), (9, 9), make.gif_blocks(0xFE, script))
    whole = make.encoded(Image.new("L", (9, 9)), "GIF", comment=script)
    for data in (jpeg + b"PK\x05\x06" + bytes(18), png + b"<?php phpinfo();", whole + script):
        assert post(canary, data).status_code == 200
    for data in (b"<script>x</script>" + jpeg, b"\n" + png, b"#!/bin/sh\n" + gif):
        assert refusal(post(canary, data)) == (415, "image_type_unsupported")
    kept = canary.client.post("/v1/images", files={"image": ("x", png + b"<?php")})
    shown = canary.client.get(f"/v1/images/{kept.json()['id']}")
    assert shown.headers["content-type"] == "application/json"
    assert b"php" not in shown.content
    page = canary.client.get("/")
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "default-src" in page.headers["content-security-policy"]


def test_A6_rare_formats(undecoded: Canary, picture: Image.Image) -> None:
    written = ["BMP", "DDS", "DIB", "ICNS", "ICO", "IM", "JPEG2000", "PCX", "PPM", "QOI", "SGI"]
    written += ["TGA", "TIFF", "SPIDER", "MSP", "XBM", "EPS", "PDF", "AVIF"]
    modes = {"SPIDER": "F", "MSP": "1", "XBM": "1"}
    Image.init()
    files = [
        make.encoded(picture.convert(modes.get(name, "RGB")), name)
        for name in written
        if name in Image.SAVE
    ]
    assert len(files) > 12
    files += [b"8BPS\0\1", b"SIMPLE  =", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"\xd7\xcd\xc6\x9a"]
    files += [b"STARTFONT 2.1\n", b"\x53\x80\xf6\x34", b"BLP2", b"\x01\xda", b"II\xbc\x01"]
    found = {refusal(post(undecoded, data)) for data in files}
    assert found == {(415, "image_type_unsupported")}


def refused_from_the_header(canary: Canary, data: bytes, code: str) -> None:
    """No decoder wakes, and no memory is taken but what the file itself needs."""
    spent = cost(canary, Bomb("", data, (code,)))
    assert spent.code == code
    assert spent.server_mib + spent.decoders_mib < 8 + 4 * len(data) / 2**20


def test_A7_png_of_169_megapixels(undecoded: Canary) -> None:
    data = make.png_bomb(13_000)
    assert len(data) < 25_000
    refused_from_the_header(undecoded, data, "image_too_many_pixels")


def test_A8_png_of_900_megapixels(undecoded: Canary) -> None:
    data = make.png_bomb(30_000)
    assert len(data) < 120_000
    refused_from_the_header(undecoded, data, "image_too_many_pixels")


def test_A9_webp_of_34_bytes(undecoded: Canary) -> None:
    data = make.webp_header(16_383, 10_000)
    assert len(data) == 34
    refused_from_the_header(undecoded, data, "image_too_many_pixels")


def test_A10_jpeg_of_169_megapixels(undecoded: Canary, picture: Image.Image) -> None:
    jpeg = make.resized_header(make.encoded(picture, "JPEG"), 13_000, 13_000)
    data = jpeg[:-2] + bytes(2 * 10**6) + jpeg[-2:]
    refused_from_the_header(undecoded, data, "image_too_many_pixels")


def test_A10_jpeg_of_a_thousand_scans(make_canary: MakeCanary) -> None:
    data = make.scans_bomb(3000, 1000)
    with make_canary(max_decode_cpu_s="0.5") as canary:
        canary.may_restart = True
        pid = canary.process.pid
        assert refusal(post(canary, data)) == (422, "image_decode_timeout")
        assert canary.process.pid == pid
        assert 'simpleseg_decoder_deaths_total{reason="timeout"} 1.0' in canary.metrics()


def test_A11_bombs_are_refused_within_bounds(canary: Canary) -> None:
    bombs = [bomb for bomb in corpus() if "image_decode_timeout" not in bomb.codes]
    assert len(bombs) >= 40
    for bomb in bombs:
        spent = cost(canary, bomb)
        assert spent.code in bomb.codes, bomb.name
        assert spent.server_mib + spent.decoders_mib < 64, spent


def test_A12_impossible_dimensions(undecoded: Canary, picture: Image.Image) -> None:
    jpeg = make.encoded(picture, "JPEG")
    for data in (
        make.png(65_535, 65_535, b""),
        make.png(0, 9, b""),
        make.png(9, 0, b""),
        make.png(2**31, 2**31, b""),
        make.png(2**32 - 1, 2**32 - 1, b""),
        make.resized_header(jpeg, 0, 9),
        make.resized_header(jpeg, 65_535, 65_535),
        make.gif((0, 0), (0, 0)),
        make.webp_canvas(2**24, 2**24),
    ):
        assert refusal(post(undecoded, data)) == (422, "image_dimensions_invalid")
    bmp = b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 54, 40, 9, -9, 1, 24, 0, 0, 0, 0, 0, 0)
    assert refusal(post(undecoded, bmp)) == (415, "image_type_unsupported")


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
        few = indices % 2**bits
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


def test_A17_what_is_not_read(app: App, picture: Image.Image) -> None:
    for mode in ("F", "I", "LAB", "YCbCr"):
        image = picture.convert("L").convert(mode) if mode in "FI" else picture
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


def test_A19_colour_profiles(app: App, picture: Image.Image) -> None:
    jpeg = make.encoded(picture, "JPEG")
    plain = app.see(jpeg).pixels
    wide = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    noise = np.random.default_rng(7).bytes(10 * 2**20)
    for profile in (wide, wide[:50], b"\xff" * 1000, noise):
        assert difference(app.see(make.jpeg_with_profile(jpeg, profile)).pixels, plain) == 0
    stored = np.asarray(picture)
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


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (1, 201), (201, 1)])
def test_A21_lines(size: tuple[int, int], undecoded: Canary) -> None:
    data = make.encoded(Image.new("L", size))
    assert refusal(post(undecoded, data)) == (422, "image_aspect_ratio")
    requests = undecoded.requests()
    assert requests[-1]["status"] == 422


def test_A22_black_white_noise(app: App, picture: Image.Image) -> None:
    for image in (Image.new("RGB", (96, 64)), Image.new("RGB", (96, 64), "white"), picture):
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


def with_stopped_decoders(canary: Canary, then: Any) -> httpx2.Response:
    """The answer about an image whose decoder is stopped; ``then`` is done to it meanwhile."""
    stopped = decoders(canary)
    for process in stopped:
        process.suspend()
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(post, canary, make.encoded(make.noise()))
        while "simpleseg_in_flight 1.0" not in canary.metrics():
            time.sleep(0.01)
        then(stopped)
        return answer.result()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_A24_a_decoder_dies(number: int, make_canary: MakeCanary) -> None:
    with make_canary() as canary:
        canary.may_restart = True
        count = len(decoders(canary))

        def end(stopped: list[psutil.Process]) -> None:
            for process in stopped:
                process.send_signal(number)
                process.resume()

        answer = with_stopped_decoders(canary, end)
        assert refusal(answer) == (422, "image_decode_failed")
        assert post(canary, make.encoded(make.noise())).status_code == 200
        assert len(decoders(canary)) == count
        assert 'simpleseg_decoder_deaths_total{reason="crash"} 1.0' in canary.metrics()


def test_A24_a_decoder_hangs(make_canary: MakeCanary) -> None:
    with make_canary(max_decode_cpu_s="0.2") as canary:
        canary.may_restart = True
        answer = with_stopped_decoders(canary, lambda _: None)
        assert refusal(answer) == (422, "image_decode_timeout")
        for _ in range(4):
            assert canary.segment().status_code in (200, 422)
        assert canary.segment().status_code == 200


def test_A24_a_decoder_wants_memory(make_canary: MakeCanary) -> None:
    with make_canary(max_decoder_bytes=str(200 * 2**20)) as canary:
        data = make.encoded(Image.new("RGB", (7000, 7000)))
        pids = [process.pid for process in decoders(canary)]
        assert refusal(post(canary, data)) == (422, "image_decode_failed")
        assert [process.pid for process in decoders(canary)] == pids


def test_A24_all_decoders_and_what_forks_them_die(make_canary: MakeCanary) -> None:
    with make_canary() as canary:
        canary.may_restart = True
        [nursery] = canary.process.children()
        old = decoders(canary)
        nursery.kill()
        assert canary.segment().status_code == 200
        assert not {process.pid for process in decoders(canary)} & {one.pid for one in old}
        psutil.wait_procs(old, timeout=30)
        assert not any(process.is_running() for process in old)


def test_A24_no_decoder_outlives_a_server_that_is_killed(tmp_path: Path) -> None:
    with started(tmp_path) as canary:
        alive = canary.process.children(recursive=True)
        assert len(alive) > 2
        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(post, canary, make.scans_bomb(3000, 1000))
            while "simpleseg_in_flight 1.0" not in canary.metrics():
                time.sleep(0.01)
            canary.process.kill()
            with pytest.raises(httpx2.TransportError):
                answer.result()
        _, left = psutil.wait_procs(alive, timeout=30)
        assert not left


@pytest.mark.parametrize(
    "text", ["a", "aGk", "aGk=\n", "aG k=", "a-_=", "=" * 8, "aGk=aGk=", "\u00e9==="]
)
def test_A25_malformed_base64(text: str, undecoded: Canary) -> None:
    assert refusal(undecoded.segment(image={"base64": text})) == (400, "image_base64_invalid")
    assert refusal(undecoded.segment(image=text)) == (400, "image_base64_invalid")


def test_A25_endless_base64(undecoded: Canary) -> None:
    size = Settings().max_image_bytes // 3 * 4 + 4
    answer = undecoded.segment(image={"base64": "=" * size})
    assert refusal(answer) == (413, "image_too_large")
    answer = undecoded.segment(image={"base64": "=" * 100_000_000})
    assert refusal(answer) == (413, "payload_too_large")


@pytest.mark.parametrize(
    ("url", "status", "code"),
    [
        ("data:image/png;base64", 400, "image_url_invalid"),
        ("data:image/png,abc", 400, "image_url_invalid"),
        ("data:,", 400, "image_url_invalid"),
        ("data:" + ";a=b" * 1000 + ";base64,aGk=", 400, "image_url_invalid"),
        ("data:text/html;base64,aGk=", 415, "image_type_unsupported"),
        ("data:image/svg+xml;base64,PHN2Zy8+", 415, "image_type_unsupported"),
        ("data:image/png;base64,data:image/png;base64,aGk=", 400, "image_base64_invalid"),
        ("DATA:image/png;base64,aGk", 400, "image_base64_invalid"),
    ],
)
def test_A26_malformed_data_urls(url: str, status: int, code: str, undecoded: Canary) -> None:
    assert refusal(undecoded.segment(image={"url": url})) == (status, code)


def test_A27_several_sources_or_none(undecoded: Canary) -> None:
    image64 = base64.b64encode(make.encoded(make.noise())).decode()
    url = f"data:image/png;base64,{image64}"
    both = undecoded.segment(image={"base64": image64, "url": url})
    assert refusal(both) == (400, "image_source_ambiguous")
    assert refusal(undecoded.segment(image={})) == (400, "image_missing")
    assert refusal(undecoded.segment(image=None)) == (400, "image_missing")
    none = undecoded.client.post("/segment", json={"prompt": "a dog"})
    assert refusal(none) == (400, "image_missing")
    file = {"image": ("x", make.encoded(make.noise()))}
    form = undecoded.client.post("/segment", files=file, data={"prompt": "x", "image": url})
    assert form.status_code == 400


def test_A28_one_image_ten_thousand_times() -> None:
    """All are decoded, and never more pixels at once than the limit lets."""
    data = make.encoded(make.noise(8, 8))
    settings = Settings(max_image_pixels=64, max_pixels_in_flight=3 * 64)
    taken: list[int] = []

    async def all_at_once(intake: ImageIntake) -> list[str]:
        async def one() -> str:
            image = await intake.decode(data, EngineSize(10**6), "image")
            taken.append(intake.budget.taken)
            return image.key

        return await asyncio.gather(*(one() for _ in range(10_000)))

    with ThreadPoolExecutor(2) as workers:
        intake = ImageIntake(settings, workers, Metrics())
        keys = asyncio.run(all_at_once(intake))
    intake.close()
    assert len(set(keys)) == 1
    assert 0 < max(taken) <= settings.max_pixels_in_flight
