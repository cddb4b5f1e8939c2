"""Image files made by hand: headers that lie, bombs, metadata, and honest pictures."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""PNG's colour type by the number of channels."""


def encoded(image: Image.Image, name: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def noise(width: int = 96, height: int = 64, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    width: int, height: int, body: bytes, *, bits: int = 8, colour: int = 2, before: bytes = b""
) -> bytes:
    """A PNG of these compressed rows, with further chunks ``before`` them."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + before + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return PNG_SIGNATURE + chunks


def png_of(samples_hwc: NDArray[Any], *, before: bytes = b"") -> bytes:
    """A PNG of 8 or 16 bits a sample, of 1 to 4 channels."""
    height, width, channels = samples_hwc.shape
    bits = samples_hwc.dtype.itemsize * 8
    rows = samples_hwc.astype(samples_hwc.dtype.newbyteorder(">")).tobytes()
    stride = len(rows) // height
    lines = b"".join(b"\0" + rows[i * stride : (i + 1) * stride] for i in range(height))
    colour = COLOUR_TYPES[channels]
    return png(width, height, zlib.compress(lines), bits=bits, colour=colour, before=before)


def deflated(size: int, level: int = 9) -> bytes:
    """So many zeros, compressed."""
    compressor = zlib.compressobj(level)
    block = bytes(2**20)
    parts = [compressor.compress(block) for _ in range(size >> 20)]
    return b"".join([*parts, compressor.compress(block[: size & 2**20 - 1]), compressor.flush()])


def png_bomb(side: int) -> bytes:
    """A whole and valid black PNG of one bit a pixel."""
    return png(side, side, deflated(side * (1 + (side + 7) // 8)), bits=1, colour=0)


def webp_header(width: int, height: int) -> bytes:
    """34 bytes of a lossless WebP that promise a size."""
    bits = 0x2F | (width - 1) << 8 | (height - 1) << 22
    body = b"VP8L" + struct.pack("<I", 14) + bits.to_bytes(5, "little") + bytes(9)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def webp_canvas(width: int, height: int, inner: bytes = b"") -> bytes:
    """An extended WebP of a canvas and chunks."""
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + sides + inner
    return b"RIFF" + struct.pack("<I", len(body)) + body


def segment(marker: int, data: bytes) -> bytes:
    """A segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    """A JPEG with segments at its start."""
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def resized_header(jpeg: bytes, width: int, height: int) -> bytes:
    """A JPEG whose frame header tells another size."""
    at = next(i for i, marker, _ in _segments(jpeg) if marker in (0xC0, 0xC1, 0xC2))
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]


def _segments(jpeg: bytes) -> Iterator[tuple[int, int, int]]:
    """Where segments begin, their markers, and where they end; pixels are skipped."""
    at = 2
    while at < len(jpeg) - 2:
        size = int.from_bytes(jpeg[at + 2 : at + 4], "big")
        end = at + 2 + size
        if jpeg[at + 1] == 0xDA:
            end = _end_of_scan(jpeg, end)
        yield at, jpeg[at + 1], end
        at = end


def _end_of_scan(jpeg: bytes, at: int) -> int:
    while True:
        at = jpeg.index(b"\xff", at)
        if jpeg[at + 1] != 0 and not 0xD0 <= jpeg[at + 1] <= 0xD7:
            return at
        at += 2


def scans_bomb(side: int, scans: int) -> bytes:
    """A progressive JPEG that goes over its coefficients again and again."""
    jpeg = encoded(Image.new("RGB", (side, side), "gray"), "JPEG", progressive=True)
    *_, (begin, _, end) = (s for s in _segments(jpeg) if s[1] == 0xDA)
    return jpeg[:end] + jpeg[begin:end] * scans + jpeg[end:]


def exif(size: int, orientation: int = 1) -> bytes:
    """EXIF of an orientation, filled up to a size."""
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    body = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4)
    return body.ljust(size, b"\0")


def jpeg_with_exif(jpeg: bytes, size: int) -> bytes:
    """EXIF of many bytes, spread over segments as no camera does."""
    head = b"Exif\0\0"
    data = exif(size)[6:]
    parts = (data[i : i + 65_000] for i in range(0, len(data), 65_000))
    return with_segments(jpeg, *(segment(0xE1, head + part) for part in parts))


def jpeg_with_profile(jpeg: bytes, profile: bytes) -> bytes:
    parts = [profile[i : i + 65_000] for i in range(0, len(profile), 65_000)]
    count = len(parts)
    return with_segments(
        jpeg,
        *(
            segment(0xE2, b"ICC_PROFILE\0" + bytes([i + 1, min(count, 255)]) + part)
            for i, part in enumerate(parts)
        ),
    )


def gif(canvas: tuple[int, int], frame: tuple[int, int], blocks: bytes = b"") -> bytes:
    """A GIF of a canvas and a frame of other sides, whose pixels end at once."""
    head = b"GIF89a" + struct.pack("<HHBBB", *canvas, 0x80, 0, 0) + bytes(6)
    return head + blocks + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x4c\x01\x00;"


def gif_blocks(label: int, data: bytes) -> bytes:
    """An extension of a GIF."""
    parts = (data[i : i + 255] for i in range(0, len(data), 255))
    return bytes([0x21, label]) + b"".join(bytes([len(part)]) + part for part in parts) + b"\0"
