"""Damaged image files without end: small files of every kind, changed the way that files break and
the way that attackers change them."""

import random
import struct
from collections.abc import Callable, Iterator

from PIL import Image

from . import image_files as make

_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1)
_MARKS = (
    *(bytes([0xFF, marker]) for marker in (0xC0, 0xC2, 0xC4, 0xD0, 0xD8, 0xD9, 0xDA, 0xDB, 0xE1)),
    *(b"IHDR", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"IDAT", b"fdAT", b"IEND"),
    *(b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"EXIF"),
    *(b"!\xf9\x04", b"!\xfe", b",", b";"),
)


def seeds() -> list[bytes]:
    """Small files that use what the four formats have."""
    picture = make.noise(24, 16)
    smooth = Image.linear_gradient("L").resize((40, 24))
    palette = picture.quantize(16)
    clear = picture.convert("RGBA")
    clear.putalpha(128)
    frames = [make.noise(12, 9, seed) for seed in range(3)]
    options = {"save_all": True, "append_images": frames[1:]}
    jpeg = make.encoded(picture, "JPEG")
    files = [
        jpeg,
        make.encoded(smooth, "JPEG", progressive=True),
        make.encoded(picture, "JPEG", subsampling=2, restart_marker_blocks=1),
        make.encoded(picture.convert("CMYK"), "JPEG"),
        make.with_segments(jpeg, make.segment(0xE1, make.exif(64, 6))),
        make.jpeg_with_profile(jpeg, bytes(range(200))),
        make.encoded(picture),
        make.encoded(smooth.convert("I;16")),
        make.encoded(palette, transparency=3),
        make.encoded(clear),
        make.encoded(picture.convert("1")),
        make.encoded(frames[0], "PNG", **options),
        make.png(3, 3, make.deflated(30), before=make.chunk(b"eXIf", make.exif(40, 8)[6:])),
        make.encoded(picture, "WEBP"),
        make.encoded(smooth, "WEBP", lossless=True),
        make.encoded(clear, "WEBP", exif=make.exif(64, 5)),
        make.encoded(frames[0], "WEBP", **options),
        make.encoded(palette, "GIF"),
        make.encoded(frames[0], "GIF", **options),
        make.encoded(palette, "GIF", interlace=1, transparency=1, comment=b"hello"),
    ]
    return [bytes(file) for file in files]


def mutants(count: int, seed: int) -> Iterator[bytes]:
    """So many files, the same ones for the same seed; each has one to four changes."""
    rng, files = random.Random(seed), seeds()
    for _ in range(count):
        data = bytearray(rng.choice(files))
        for _ in range(rng.randint(1, 4)):
            rng.choice(_CHANGES)(rng, data, files)
        yield bytes(data)


def _at(rng: random.Random, data: bytearray) -> int:
    """A place, more often within the header."""
    return rng.randrange(max(1, min(len(data), 64) if rng.random() < 0.4 else len(data)))


def _flip(rng: random.Random, data: bytearray, _: list[bytes]) -> None:
    if data:
        data[_at(rng, data)] ^= 1 << rng.randrange(8)


def _overwrite(rng: random.Random, data: bytearray, _: list[bytes]) -> None:
    at = _at(rng, data)
    new = rng.randbytes(rng.randint(1, 8))
    data[at : at + len(new)] = new


def _number(rng: random.Random, data: bytearray, _: list[bytes]) -> None:
    at, value = _at(rng, data), rng.choice(_NUMBERS)
    form = rng.choice(["<H", ">H", "<I", ">I"])
    new = struct.pack(form, value % 2 ** (16 if form[1] == "H" else 32))
    data[at : at + len(new)] = new


def _cut(rng: random.Random, data: bytearray, _: list[bytes]) -> None:
    del data[_at(rng, data) :]


def _remove(rng: random.Random, data: bytearray, _: list[bytes]) -> None:
    at = _at(rng, data)
    del data[at : at + rng.randint(1, 40)]


def _repeat(rng: random.Random, data: bytearray, _: list[bytes]) -> None:
    at = _at(rng, data)
    data[at:at] = data[at : at + rng.randint(1, 60)] * rng.choice([1, 1, 2, 50])


def _mark(rng: random.Random, data: bytearray, _: list[bytes]) -> None:
    at, mark = _at(rng, data), rng.choice(_MARKS)
    data[at : at + rng.choice([0, len(mark)])] = mark


def _splice(rng: random.Random, data: bytearray, files: list[bytes]) -> None:
    other = rng.choice(files)
    begin = rng.randrange(len(other))
    at = _at(rng, data)
    data[at : at + rng.choice([0, 100])] = other[begin : begin + rng.randint(1, 300)]


_CHANGES: list[Callable[[random.Random, bytearray, list[bytes]], None]] = [
    _flip,
    _flip,
    _overwrite,
    _number,
    _number,
    _cut,
    _remove,
    _repeat,
    _mark,
    _splice,
]
