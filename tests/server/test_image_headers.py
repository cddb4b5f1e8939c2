"""Sizes read from headers are those that Pillow reads, and reading them costs next to nothing."""

import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from simpleseg_polygon.geometry import ImageSize
from simpleseg_server.image_headers import MAX_CHUNKS, MAX_SCANS, header_size, is_laborious, sniff

KINDS: list[tuple[str, str, dict[str, Any]]] = [
    ("JPEG", "RGB", {}),
    ("JPEG", "L", {"progressive": True, "comment": b"\xff\xc0 is no frame here"}),
    ("JPEG", "CMYK", {"icc_profile": bytes(100_000)}),
    ("PNG", "RGBA", {}),
    ("PNG", "1", {}),
    ("WEBP", "RGB", {}),
    ("WEBP", "RGB", {"lossless": True}),
    ("WEBP", "RGBA", {"exif": b"Exif\0\0MM\0*" + bytes(9)}),
    ("GIF", "P", {}),
    ("GIF", "L", {"comment": b"a comment of more than one block" * 20, "transparency": 0}),
]
SIDES = st.integers(1, 300)


@pytest.mark.parametrize(("name", "mode", "options"), KINDS)
@settings(max_examples=20, deadline=None)
@given(width=SIDES, height=SIDES)
def test_sizes_are_those_of_the_picture(
    name: str, mode: str, options: dict[str, Any], width: int, height: int
) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, name, **options)
    data = buffer.getvalue()
    assert sniff(data) == name
    assert header_size(data, name) == ImageSize(height, width)
    assert not is_laborious(data, name)


@given(data=st.binary(max_size=200), name=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF"]))
def test_reading_a_size_is_total(data: bytes, name: str) -> None:
    heads = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "GIF": b"GIF89a"}
    size = header_size(heads.get(name, b"RIFF\0\0\0\0WEBP") + data, name)
    assert size is None or min(size) >= 0
    assert not is_laborious(heads.get(name, b"") + data, name)


def test_a_frame_that_reaches_beyond_its_canvas_counts() -> None:
    head = b"GIF89a" + bytes([8, 0, 4, 0, 0, 0, 0])
    assert header_size(head + b"," + bytes([2, 0, 3, 0, 9, 0, 1, 0, 0]), "GIF") == (4, 11)


@pytest.mark.parametrize("filling", [b"\xff", b"\xff\xfe\0\2", b"\xff\x01"])
def test_endless_headers_are_given_up(filling: bytes) -> None:
    frame = b"\xff\xc0\0\x11\x08\0\x10\0\x20"
    assert header_size(b"\xff\xd8" + filling * 100 + frame, "JPEG") == ImageSize(16, 32)
    assert header_size(b"\xff\xd8" + filling * 10_000 + frame, "JPEG") is None


def test_parts_beyond_what_encoders_write_are_laborious() -> None:
    scan = b"\xff\xda\0\2 \xff\0 \xff\xd0 "
    assert not is_laborious(b"\xff\xd8" + scan * MAX_SCANS + b"\xff\xd9" + scan, "JPEG")
    assert is_laborious(b"\xff\xd8" + scan * (MAX_SCANS + 1), "JPEG")
    within = b"\xff\xe1" + (2 + 100 * len(scan)).to_bytes(2, "big") + scan * 100
    assert not is_laborious(b"\xff\xd8" + within + scan, "JPEG"), "those of a preview"
    assert is_laborious(b"\xff\xd8" + b"\xff\xfe\0\2" * 10_000, "JPEG")
    chunk, end = b"\0\0\0\1IDAT crc.", b"\0\0\0\0IEND...."
    assert not is_laborious(b"8 bytes:" + chunk * (MAX_CHUNKS - 1) + end + chunk * 9, "PNG")
    assert is_laborious(b"8 bytes:" + chunk * MAX_CHUNKS + end, "PNG")
