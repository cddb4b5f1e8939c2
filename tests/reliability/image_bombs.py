"""Files that ask for far more than they are: a corpus, and what refusing each of them costs.

    python -m tests.reliability.image_bombs [--json]

puts each to a server in a process of its own and prints the answer, the time as the client sees it
(median of five) and the memory that the server and its decoders took at most beyond what they had.
Ours is linear in the file: what a client sends is read, and kept until it is answered.
"""

import argparse
import json
import statistics
import struct
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx2
import psutil
from PIL import Image

from . import image_files as make
from .canary import Canary, started

MIB = 2**20
REPEATS = 5


@dataclass(frozen=True)
class Bomb:
    """A file, and the codes with which it may be refused; "" is an answer."""

    name: str
    data: bytes
    codes: tuple[str, ...]


TOO_MANY = ("image_too_many_pixels",)
SIDES = ("image_dimensions_invalid",)
ASPECT = ("image_aspect_ratio",)
METADATA = ("image_metadata_too_large",)
DAMAGED = ("image_decode_failed", "image_truncated")
LATE = ("image_decode_timeout",)


def corpus() -> Iterator[Bomb]:
    """Some fifty bombs; only the last ones pass every check of the header."""
    yield from _of_pixels()
    yield from _of_sides()
    yield from _of_metadata()
    yield from _of_structure()


def _of_pixels() -> Iterator[Bomb]:
    jpeg = make.encoded(make.noise(), "JPEG")
    progressive = make.encoded(make.noise(), "JPEG", progressive=True)
    for side in (7072, 10_000, 13_000, 30_000):
        yield Bomb(f"PNG of {side} squared, whole", make.png_bomb(side), TOO_MANY)
        yield Bomb(f"JPEG of {side} squared", make.resized_header(jpeg, side, side), TOO_MANY)
        frame = make.gif((side, side), (side, side))
        yield Bomb(f"GIF of {side} squared", frame, TOO_MANY)
        yield Bomb(f"WebP canvas of {side} squared", make.webp_canvas(side, side), TOO_MANY)
    yield Bomb("WebP of 34 bytes", make.webp_header(16_383, 10_000), TOO_MANY)
    yield Bomb("WebP of 34 bytes, largest", make.webp_header(16_384, 16_384), TOO_MANY)
    yield Bomb("JPEG, progressive", make.resized_header(progressive, 30_000, 30_000), TOO_MANY)
    yield Bomb("GIF frame beyond its canvas", make.gif((8, 8), (30_000, 30_000)), TOO_MANY)
    yield Bomb(
        "PNG of 16 bits, no data", make.png(32_000, 32_000, b"", bits=16, colour=6), TOO_MANY
    )


def _of_sides() -> Iterator[Bomb]:
    jpeg = make.encoded(make.noise(), "JPEG")
    for width, height in ((65_535, 65_535), (2**31 - 1, 2**31 - 1), (2**32 - 1, 2**32 - 1)):
        yield Bomb(f"PNG of {width}", make.png(width, height, make.deflated(100)), SIDES)
    yield Bomb("PNG of 0 x 9", make.png(0, 9, b""), SIDES)
    yield Bomb("PNG line", make.png(60_000, 1, make.deflated(60_001), colour=0), ASPECT)
    yield Bomb("PNG line of 2^31", make.png(2**31, 1, b""), ASPECT)
    yield Bomb("JPEG of 65535", make.resized_header(jpeg, 65_535, 65_535), SIDES)
    yield Bomb("JPEG of height 0", make.resized_header(jpeg, 100, 0), SIDES)
    yield Bomb("GIF of 65535", make.gif((65_535, 65_535), (1, 1)), SIDES)
    yield Bomb("GIF frame of 65535", make.gif((1, 1), (65_535, 65_535)), SIDES)
    yield Bomb("WebP canvas of 2^24", make.webp_canvas(2**24, 2**24), SIDES)


def _of_metadata() -> Iterator[Bomb]:
    jpeg = make.encoded(make.noise(), "JPEG")
    text = make.chunk(b"zTXt", b"a\0\0" + make.deflated(64 * MIB))
    profile = make.chunk(b"iCCP", b"a\0\0" + make.deflated(64 * MIB))
    row = make.deflated(3 * 9 * 9 + 9)
    many = make.chunk(b"zTXt", b"a\0\0" + make.deflated(MIB - 1)) * 200
    international = make.chunk(b"iTXt", b"a\0\1\0\0\0" + make.deflated(64 * MIB))
    png = make.png(9, 9, row)
    end = png.index(b"IEND") - 4
    yield Bomb("PNG, text of 64 MiB", make.png(9, 9, row, before=text), DAMAGED + METADATA)
    yield Bomb("PNG, text of 64 MiB behind", png[:end] + text + png[end:], DAMAGED + METADATA)
    yield Bomb("PNG, profile of 64 MiB", make.png(9, 9, row, before=profile), DAMAGED + METADATA)
    yield Bomb("PNG, 200 texts of 1 MiB", make.png(9, 9, row, before=many), DAMAGED + METADATA)
    yield Bomb("PNG, iTXt of 64 MiB", make.png(9, 9, row, before=international), DAMAGED + METADATA)
    exif = make.chunk(b"eXIf", make.exif(4 * MIB)[6:])
    yield Bomb("PNG, EXIF of 4 MiB", make.png(9, 9, row, before=exif), METADATA)
    yield Bomb("JPEG, EXIF of 4 MiB", make.jpeg_with_exif(jpeg, 4 * MIB), METADATA)
    comments = make.with_segments(jpeg, *[make.segment(0xFE, bytes(65_000))] * 60)
    yield Bomb("JPEG, comments of 4 MB", comments, METADATA)
    flood = make.with_segments(jpeg, *[make.segment(0xFE, b"")] * 500_000)
    yield Bomb("JPEG, 500,000 comments", flood, DAMAGED)
    comment = make.gif((9, 9), (9, 9), make.gif_blocks(0xFE, bytes(4 * MIB)))
    yield Bomb("GIF, comment of 4 MiB", comment, DAMAGED + METADATA)
    empty = make.gif((9, 9), (9, 9), make.gif_blocks(0xFE, b"") * 500_000)
    yield Bomb("GIF, 500,000 comments", empty, DAMAGED + METADATA)
    cycle = b"MM\0*" + struct.pack(">IH", 8, 0) + struct.pack(">I", 8)
    looped = make.with_segments(jpeg, make.segment(0xE1, b"Exif\0\0" + cycle))
    yield Bomb("JPEG, EXIF directory in a cycle", looped, ("",))


def _of_structure() -> Iterator[Bomb]:
    huge = b"II*\0" + struct.pack("<IH", 8, 65_535) + bytes(12 * 65_535)
    yield Bomb("TIFF, 65,535 tags", huge, ("image_type_unsupported",))
    cycle = b"II*\0" + struct.pack("<IHI", 8, 0, 8)
    yield Bomb("TIFF, directory in a cycle", cycle, ("image_type_unsupported",))
    empty = make.chunk(b"IDAT", b"") * 200_000
    yield Bomb("PNG, 200,000 empty IDAT", make.png(9, 9, b"", before=empty), LATE)
    wrong = make.png(4000, 4000, make.deflated(100), colour=0)
    yield Bomb("PNG that holds less than it says", wrong, DAMAGED)
    frames = [Image.new("L", (64, 64), i % 256) for i in range(1000)]
    many = make.encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    yield Bomb("GIF of 1,000 frames", many, ("",))
    yield Bomb("JPEG of 1,000 scans", make.scans_bomb(3000, 1000), LATE)


@dataclass(frozen=True)
class Cost:
    """What a bomb did to a server."""

    name: str
    bytes: int
    code: str
    ms: float
    server_mib: float
    decoders_mib: float


def decoders(canary: Canary) -> list[psutil.Process]:
    """The processes that decode; the one that forks them is not among them."""
    [nursery] = canary.process.children()
    return nursery.children()


def post(canary: Canary, data: bytes, **form: str) -> httpx2.Response:
    """A form with this file."""
    return canary.client.post(
        "/segment", files={"image": ("x", data)}, data={"prompt": "a dog", **form}
    )


def code_of(response: httpx2.Response) -> str:
    """The code of a refusal; "" of an answer."""
    return "" if response.status_code == 200 else str(response.json()["error"]["code"])


def refusal(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, code_of(response)


def _reset(process: psutil.Process) -> float:
    """Forget the most memory that a process has had; what it has now, in MiB."""
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")
    return _mib(process, "VmRSS")


def _mib(process: psutil.Process, name: str) -> float:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(name)]
    return int(line.split()[1]) / 1024


def cost(canary: Canary, bomb: Bomb, repeats: int = 1) -> Cost:
    """Put a bomb to a server; memory is that of the first time."""
    children = decoders(canary)
    before = {process: _reset(process) for process in (canary.process, *children)}
    times: list[float] = []
    grown: dict[psutil.Process, float] = {}
    for _ in range(repeats):
        began = time.perf_counter()
        response = post(canary, bomb.data)
        times.append((time.perf_counter() - began) * 1e3)
        alive = [process for process in before if process.is_running()]
        grown = grown or {p: _mib(p, "VmHWM") - before[p] for p in alive}
    server = grown.pop(canary.process)
    return Cost(
        bomb.name,
        len(bomb.data),
        code_of(response),
        round(statistics.median(times), 1),
        round(server, 1),
        round(sum(grown.values()), 1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="What refusing image bombs costs.")
    parser.add_argument("--json", action="store_true", help="print one object on the last line")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, started(Path(folder)) as canary:
        costs = [cost(canary, bomb, REPEATS) for bomb in corpus()]
    print(f"{'ms':>8} {'server':>8} {'decoders':>8} {'file':>9}  what, and the answer")
    for one in costs:
        print(
            f"{one.ms:8.1f} {one.server_mib:7.1f}M {one.decoders_mib:7.1f}M {one.bytes:9d}  "
            f"{one.name}: {one.code or 'answered'}"
        )
    if options.json:
        print(json.dumps({"bombs": len(costs), "costs": [asdict(one) for one in costs]}))


if __name__ == "__main__":
    main()
