"""Images as text: base64 and ``data:`` URLs, and the media types that are declared with them."""

import binascii
import re
from collections.abc import Iterator

from simpleseg_server.config import Settings
from simpleseg_server.errors import ApiError, image_url_blocked
from simpleseg_server.images import too_large

_DATA_URL = re.compile(
    r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.=+-]+)*?)(;base64)?", re.ASCII | re.IGNORECASE
)
_MAX_DATA_URL_HEAD = 256
_BASE64_SLICE = 2**18
"""Characters, a multiple of four."""


def decode_base64(text: str, settings: Settings, param: str) -> bytes:
    """The bytes of strict base64 (no white space, with padding); the size is checked first.

    Raises ApiError: 400 image_base64_invalid; 413 image_too_large.
    """
    if len(text) > (settings.max_image_bytes + 2) // 3 * 4:
        raise too_large(settings, param)
    try:
        return b"".join(_decode_slices(text))
    except ValueError:
        raise ApiError(
            400, "image_base64_invalid", "the image is not valid base64", param=param
        ) from None


def _decode_slices(text: str) -> Iterator[bytes]:
    """Decode slice by slice: one call on a large text would hold the interpreter for 100s of ms.

    Raises ValueError, also for padding before the end.
    """
    for start in range(0, max(len(text), 1), _BASE64_SLICE):
        data = binascii.a2b_base64(text[start : start + _BASE64_SLICE], strict_mode=True)
        if start + _BASE64_SLICE < len(text) and len(data) != _BASE64_SLICE // 4 * 3:
            raise ValueError("padding before the end")
        yield data


def is_data_url(url: str) -> bool:
    return url[:5].lower() == "data:"


def decode_data_url(url: str, settings: Settings, param: str) -> tuple[bytes, str | None]:
    """The bytes of a ``data:`` URL and the media type that it declares.

    Raises ApiError as ``decode_base64`` does, 400 image_url_invalid, 415 image_type_unsupported,
    and 422 image_url_blocked for another URL.
    """
    if not is_data_url(url):
        raise image_url_blocked(param)
    head, comma, payload = url.partition(",")
    match = _DATA_URL.fullmatch(head) if len(head) <= _MAX_DATA_URL_HEAD else None
    if not comma or match is None or match[3] is None:
        raise ApiError(
            400, "image_url_invalid", "a data URL must read data:image/...;base64,...", param=param
        )
    declared = match[1]
    if declared and not declared.startswith("image/") and declared != "application/octet-stream":
        raise ApiError(
            415, "image_type_unsupported", "the data URL does not declare an image", param=param
        )
    return decode_base64(payload, settings, param), declared


def is_mismatch(declared: str | None, format_name: str) -> bool:
    """Whether a declared media type names another image format than the bytes.

    >>> is_mismatch("image/png", "JPEG"), is_mismatch("image/jpg", "JPEG"), is_mismatch(None, "PNG")
    (True, False, False)
    """
    if not declared or not declared.startswith("image/"):
        return False
    subtype = declared.removeprefix("image/").lower().replace("jpg", "jpeg").removeprefix("x-")
    return subtype not in (format_name.lower(), "*")
