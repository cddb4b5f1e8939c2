"""Section A of the catalogue: image files that are refused, by a server in a process of its own."""

import base64
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simpleseg_server.config import Settings

from . import image_files as make
from .canary import Canary
from .image_bombs import Bomb, corpus, cost, decoders, post, refusal

PICTURE = make.noise()


def work_of_decoders(canary: Canary) -> list[int]:
    """How often each decoder has woken up: it sleeps while nothing is asked of it."""
    return [process.num_ctx_switches().voluntary for process in decoders(canary)]


@pytest.fixture
def undecoded(canary: Canary) -> Iterator[Canary]:
    """A canary whose decoders are not asked for anything."""
    before = work_of_decoders(canary)
    yield canary
    assert work_of_decoders(canary) == before


def test_A1_no_bytes(undecoded: Canary) -> None:
    assert refusal(post(undecoded, b"")) == (422, "image_empty")
    assert refusal(undecoded.segment(image={"base64": ""})) == (422, "image_empty")


def test_A2_cut_at_every_sixteenth(canary: Canary) -> None:
    kinds: list[tuple[str, dict[str, Any]]] = [
        *((name, {}) for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")),
        ("JPEG", {"progressive": True}),
        ("WEBP", {"lossless": True}),
    ]
    for name, options in kinds:
        data = make.encoded(PICTURE, name, **options)
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


def test_A5_two_things_at_once(canary: Canary) -> None:
    jpeg, png = make.encoded(PICTURE, "JPEG"), make.encoded(PICTURE)
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


def test_A6_rare_formats(undecoded: Canary) -> None:
    written = ["BMP", "DDS", "DIB", "ICNS", "ICO", "JPEG2000", "PCX", "PPM", "QOI", "SGI"]
    written += ["TGA", "TIFF", "SPIDER", "MSP", "XBM", "EPS", "PDF", "AVIF"]
    modes = {"SPIDER": "F", "MSP": "1", "XBM": "1"}
    Image.init()
    files = [
        make.encoded(PICTURE.convert(modes.get(name, "RGB")), name)
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


def test_A10_jpeg_of_169_megapixels(undecoded: Canary) -> None:
    jpeg = make.resized_header(make.encoded(PICTURE, "JPEG"), 13_000, 13_000)
    data = jpeg[:-2] + bytes(2 * 10**6) + jpeg[-2:]
    refused_from_the_header(undecoded, data, "image_too_many_pixels")


def test_A11_bombs_are_refused_within_bounds(canary: Canary) -> None:
    bombs = [bomb for bomb in corpus() if "image_decode_timeout" not in bomb.codes]
    assert len(bombs) >= 40
    for bomb in bombs:
        spent = cost(canary, bomb)
        assert spent.code in bomb.codes, bomb.name
        assert spent.server_mib + spent.decoders_mib < 64, spent


def test_A12_impossible_dimensions(undecoded: Canary) -> None:
    jpeg = make.encoded(PICTURE, "JPEG")
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


def test_A21_lines(undecoded: Canary) -> None:
    for size in ((1, 60_000), (60_000, 1), (1, 201), (201, 1)):
        data = make.encoded(Image.new("L", size))
        assert refusal(post(undecoded, data)) == (422, "image_aspect_ratio")


def test_A25_malformed_base64(undecoded: Canary) -> None:
    for text in ("a", "aGk", "aGk=\n", "aG k=", "a-_=", "=" * 8, "aGk=aGk=", "\u00e9==="):
        assert refusal(undecoded.segment(image={"base64": text})) == (400, "image_base64_invalid")
        assert refusal(undecoded.segment(image=text)) == (400, "image_base64_invalid")


def test_A25_endless_base64(undecoded: Canary) -> None:
    size = Settings().max_image_bytes // 3 * 4 + 4
    answer = undecoded.segment(image={"base64": "=" * size})
    assert refusal(answer) == (413, "image_too_large")
    answer = undecoded.segment(image={"base64": "=" * 100_000_000})
    assert refusal(answer) == (413, "payload_too_large")


def test_A26_malformed_data_urls(undecoded: Canary) -> None:
    for url, refused in {
        "data:image/png;base64": (400, "image_url_invalid"),
        "data:image/png,abc": (400, "image_url_invalid"),
        "data:,": (400, "image_url_invalid"),
        "data:" + ";a=b" * 1000 + ";base64,aGk=": (400, "image_url_invalid"),
        "data:text/html;base64,aGk=": (415, "image_type_unsupported"),
        "data:image/svg+xml;base64,PHN2Zy8+": (415, "image_type_unsupported"),
        "data:image/png;base64,data:image/png;base64,aGk=": (400, "image_base64_invalid"),
        "DATA:image/png;base64,aGk": (400, "image_base64_invalid"),
    }.items():
        assert refusal(undecoded.segment(image={"url": url})) == refused


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
