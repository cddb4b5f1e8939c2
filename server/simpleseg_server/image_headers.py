"""What an image file says of itself, read without a decoder: its format, its size, its parts.

Nothing here allocates by what the file says, and walks take a bounded number of steps: format and
size cost less than a millisecond or so, whatever the file, and ``is_laborious`` some milliseconds.
"""

import re
from collections.abc import Iterator
from contextlib import suppress

from simpleseg_polygon.geometry import ImageSize

MAX_STEPS = 4096
"""Segments of a JPEG, or blocks of a GIF, that may precede the size."""
MAX_SCANS = 64
"""Of a JPEG, whose decoder goes over the whole picture for each; encoders make a dozen."""
MAX_CHUNKS = 16_384
"""Of a PNG; encoders write 8 KiB or more into each."""
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
"""Of a JPEG, one that a segment follows."""
_COMMENT, _APPLICATIONS = 0xFE, range(0xE0, 0xF0)
_PROFILE = b"ICC_PROFILE\0"
_NO_FRAME = frozenset({0xC4, 0xC8, 0xCC})
"""JPEG markers among those of frames that begin none."""


def sniff(data: bytes) -> str | None:
    """Pillow's name of the format that the first bytes promise, or None if it is not read here.

    >>> sniff(b"GIF89a..."), sniff(b"%PDF-1.7")
    ('GIF', None)
    """
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def header_size(data: bytes, name: str) -> ImageSize | None:
    """The size in the header of a file of the format ``name``, as it is stored; None where there
    is none, or none within ``MAX_STEPS``.

    >>> header_size(b"RIFF    WEBPVP8L    " + bytes([0x2F, 31, 0xC0, 3, 0]), "WEBP")
    ImageSize(height=16, width=32)
    """
    try:
        return _SIZES[name](data)
    except (IndexError, ValueError):  # it ends within its header
        return None


def is_cut(data: bytes, name: str) -> bool:
    """Whether the end that the format demands is missing; only asked about undecodable files."""
    if name == "JPEG":
        return b"\xff\xd9" not in data[-1024:]
    if name == "PNG":
        return b"IEND" not in data[-1024:]
    if name == "WEBP":
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    return not data.rstrip(b"\0").endswith(b";")


def is_laborious(data: bytes, name: str) -> bool:
    """Whether a file has so many parts that its decoder works long for what there is to see."""
    walk = {"JPEG": _has_many_scans, "PNG": _has_many_chunks}.get(name)
    try:
        return walk is not None and walk(data)
    except IndexError:  # it ends within a part
        return False


def jpeg_metadata_bytes(data: bytes) -> int:
    """The bytes of everything before the picture in a JPEG, without colour profiles."""
    total = 0
    with suppress(IndexError):
        for kind, content in _jpeg_segments(data):
            if kind == 0xDA:
                break
            if kind == _COMMENT or kind in _APPLICATIONS:
                total += 0 if content.startswith(_PROFILE) else len(content)
    return total


def _number(data: bytes, start: int, size: int, order: str) -> int:
    """Raises IndexError where the file is too short."""
    field = data[start : start + size]
    if len(field) < size:
        raise IndexError
    return int.from_bytes(field, "big" if order == "big" else "little")


def _png_size(data: bytes) -> ImageSize | None:
    if data[12:16] != b"IHDR":
        return None
    return ImageSize(_number(data, 20, 4, "big"), _number(data, 16, 4, "big"))


def _webp_size(data: bytes) -> ImageSize | None:
    kind = data[12:16]
    if kind == b"VP8X":
        return ImageSize(_number(data, 27, 3, "little") + 1, _number(data, 24, 3, "little") + 1)
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = _number(data, 21, 4, "little")
        return ImageSize((bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        height, width = _number(data, 28, 2, "little"), _number(data, 26, 2, "little")
        return ImageSize(height & 0x3FFF, width & 0x3FFF)
    return None


def _jpeg_size(data: bytes) -> ImageSize | None:
    """Of the frame header, behind segments of other kinds."""
    at = 2
    for _ in range(MAX_STEPS):
        at = data.index(b"\xff", at) + 1
        marker = data[at]
        if marker in (0x00, 0xFF) or marker == 0x01 or 0xD0 <= marker <= 0xD7:
            continue  # filling, or a marker that stands alone
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            return ImageSize(_number(data, at + 4, 2, "big"), _number(data, at + 6, 2, "big"))
        if marker in (0xD8, 0xD9, 0xDA):
            return None  # pixels, the end or another start, and no frame yet
        at += 1 + max(2, _number(data, at + 1, 2, "big"))
    return None


def _has_many_scans(data: bytes) -> bool:
    scans = 0
    for count, (kind, _) in enumerate(_jpeg_segments(data)):
        scans += kind == 0xDA
        if scans > MAX_SCANS or count == MAX_STEPS:
            return True
    return False


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The kind of each segment, and what is in it."""
    at = 2
    while (marker := _MARKER.search(data, at)) and marker[0] != b"\xff\xd9":
        size = max(2, _number(data, marker.end(), 2, "big"))
        yield marker[0][1], data[marker.end() + 2 : marker.end() + size]
        at = marker.end() + size


def _has_many_chunks(data: bytes) -> bool:
    at = 8
    for _ in range(MAX_CHUNKS):
        if data[at + 4 : at + 8] in (b"IEND", b""):
            return False
        at += 12 + _number(data, at, 4, "big")
    return True


def _gif_size(data: bytes) -> ImageSize | None:
    """Of the canvas, or of the first frame where it reaches beyond."""
    width, height = _number(data, 6, 2, "little"), _number(data, 8, 2, "little")
    flags, at = data[10], 13
    if flags & 0x80:
        at += 3 << (flags & 7) + 1
    is_within_block = False
    for _ in range(MAX_STEPS):
        lead = data[at]
        if is_within_block:
            is_within_block, at = lead != 0, at + 1 + lead
        elif lead == 0x21:
            is_within_block, at = True, at + 2
        elif lead == 0x2C:
            left, top, *sides = (_number(data, at + i, 2, "little") for i in (1, 3, 5, 7))
            return ImageSize(max(height, top + sides[1]), max(width, left + sides[0]))
        elif lead == 0x3B:
            return None
        else:
            at += 1
    return None


_SIZES = {"JPEG": _jpeg_size, "PNG": _png_size, "WEBP": _webp_size, "GIF": _gif_size}
