"""Request bodies: bytes on the wire -> one dict of fields and the image's bytes.

JSON is read strictly (no duplicate keys, no deep nesting, no lone surrogates) and a multipart form
from memory (nothing goes to disk, file names are not used). Both give the same fields.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from python_multipart.multipart import parse_options_header

from simpleseg_server.errors import ApiError

MAX_JSON_DEPTH = 16
MAX_FORM_PARTS = 64
_MAX_PART_HEAD_BYTES = 4096
_MAX_FIELD_BYTES = 64 * 1024
_JSON_FIELDS = frozenset(
    {
        "prompts",
        "max_points",
        "simplify",
        "max_tokens",
        "temperature",
        "seed",
        "deadline_ms",
        "stream",
        "samples",
        "refine",
    }
)
_LIST_FIELDS = frozenset({"return", "include"})
_TEXT_FIELDS = frozenset({"model", "prompt", "task", "coordinates"})
FORM_FIELDS = _JSON_FIELDS | _LIST_FIELDS | _TEXT_FIELDS | {"image"}
"""All fields of a form. ``_JSON_FIELDS`` are written as JSON, ``_LIST_FIELDS`` with commas or given
several times, the others as they are."""
_WEB_URL = re.compile(rb"https?://", re.IGNORECASE)
"""How no image file begins."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


_SLOW_START_S = 5.0
_LEAST_BYTES_S = 16 * 1024
"""How slowly a body may come, after its first seconds."""


def time_for(received: int, timeout_s: float) -> float:
    """Seconds in which a body must have come of which so many bytes have: each puts its end off.

    >>> time_for(0, 20), time_for(32 * 1024, 20), time_for(32 * 1024, 6)
    (5.0, 7.0, 6)
    """
    return min(timeout_s, _SLOW_START_S + received / _LEAST_BYTES_S)


@dataclass(frozen=True)
class FilePart:
    """A file from a form: its bytes and the media type that the client declared."""

    data: bytes
    declared_type: str | None


@dataclass(frozen=True)
class Body:
    """The fields as JSON values, and the file if the body was a form."""

    fields: dict[str, Any]
    file: FilePart | None = None


def read_body(data: bytes, content_type: str) -> Body:
    """Take a body apart; milliseconds for large ones, so call it in a worker thread.

    Raises ApiError: 400 json_invalid, json_duplicate_key, form_invalid; 413 form_field_too_large;
    415 content_type_unsupported.
    """
    kind, options = parse_options_header(content_type)
    if kind == b"application/json":
        return Body(_json_object(data))
    if kind == b"multipart/form-data":
        return _read_form(data, options.get(b"boundary", b""))
    raise ApiError(
        415,
        "content_type_unsupported",
        "the content type must be application/json or multipart/form-data",
    )


def read_json_body(data: bytes, content_type: str) -> dict[str, Any]:
    """The fields of a body that must be JSON. Raises what ``read_body`` raises."""
    if parse_options_header(content_type)[0] != b"application/json":
        message = "the content type must be application/json"
        raise ApiError(415, "content_type_unsupported", message)
    return _json_object(data)


def _json_object(data: bytes) -> dict[str, Any]:
    value = read_json(data)
    if not isinstance(value, dict):
        raise _invalid_json("the body must be a JSON object")
    return value


def read_json(data: bytes) -> Any:
    """A JSON value; NaN and Infinity become floats, for the schema to refuse by name.

    Raises ApiError 400 json_invalid or json_duplicate_key.
    """
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_float=_number)
    except (ValueError, RecursionError):
        raise _invalid_json("the body is not valid JSON in UTF-8") from None
    _check_tree(value)
    return value


def _number(literal: str) -> float:
    """In JSON 1.0 is the integer 1, as clients write it whose language has one kind of number."""
    number = float(literal)
    return int(number) if number.is_integer() and abs(number) < 2**63 else number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ApiError(400, "json_duplicate_key", "an object has the same key twice")
    return result


def _check_tree(value: Any) -> None:
    """Refuse nesting beyond any valid request and text that UTF-8 cannot hold."""
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        if not level:
            return
        children: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                children += [*node, *node.values()]
            elif isinstance(node, list):
                children += node
            elif isinstance(node, str) and not _is_utf8(node):
                raise _invalid_json("a string is not valid Unicode")
        level = children
    raise _invalid_json("the body is nested too deeply")


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _invalid_json(message: str) -> ApiError:
    return ApiError(400, "json_invalid", message)


def _invalid_form(message: str, param: str | None = None) -> ApiError:
    return ApiError(400, "form_invalid", message, param=param)


def _read_form(data: bytes, boundary: bytes) -> Body:
    fields: dict[str, Any] = {}
    prompts: list[str] = []
    file: FilePart | None = None
    for head, content in _parts(data, boundary):
        name, declared_type = _part_head(head)
        if name == "image" and (file is not None or name in fields):
            raise ApiError(400, "image_source_ambiguous", "a form holds one image", param="image")
        if name == "image" and _WEB_URL.match(content):
            fields[name] = _field_text(content, name)
        elif name == "image":
            file = FilePart(content, declared_type)
        elif name == "prompt":
            prompts.append(_field_text(content, name))
        else:
            _add_field(fields, name, content)
    return Body(fields | _prompt_fields(prompts, fields), file)


def _prompt_fields(prompts: list[str], fields: dict[str, Any]) -> dict[str, Any]:
    """Repeated ``prompt`` fields as the one field that the schema knows."""
    if len(prompts) > 1 and "prompts" in fields:
        raise ApiError(400, "prompt_ambiguous", "give only one of prompt and prompts")
    if len(prompts) > 1:
        return {"prompts": prompts}
    return {"prompt": prompts[0]} if prompts else {}


def _parts(data: bytes, boundary: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Head and content of each part of a complete multipart body (RFC 2046)."""
    if not 1 <= len(boundary) <= 70:
        raise _invalid_form("the content type names no boundary")
    delimiter = b"\r\n--" + boundary
    chunks = (b"\r\n" + data).split(delimiter, MAX_FORM_PARTS + 2)
    if len(chunks) > MAX_FORM_PARTS + 2:
        raise _invalid_form("the form has too many parts")
    if len(chunks) < 2 or not chunks[-1].startswith(b"--"):
        raise _invalid_form("the form ends early")
    for chunk in chunks[1:-1]:
        head, separator, content = chunk.partition(b"\r\n\r\n")
        if not separator or len(head) > _MAX_PART_HEAD_BYTES:
            raise _invalid_form("a part of the form has no proper head")
        yield head, content


def _part_head(head: bytes) -> tuple[str, str | None]:
    """The field name and declared media type of a part."""
    headers = {}
    for line in head.split(b"\r\n"):
        key, _, value = line.partition(b":")
        headers[key.strip().lower()] = value.strip()
    disposition, options = parse_options_header(headers.get(b"content-disposition", b""))
    name = options.get(b"name", b"").decode("latin-1")
    if disposition != b"form-data" or not _NAME.fullmatch(name):
        raise _invalid_form("a part of the form has no proper name")
    declared = parse_options_header(headers.get(b"content-type", b""))[0].decode("latin-1")
    return name, declared or None


def _add_field(fields: dict[str, Any], name: str, content: bytes) -> None:
    """Add a form field as the JSON value that it stands for.

    Unknown names are passed on as text, for the schema to refuse by name.
    """
    if name in _LIST_FIELDS:
        fields.setdefault(name, []).extend(_field_text(content, name).split(","))
    elif name in fields:
        raise _invalid_form("a field is given twice", name)
    elif name in _JSON_FIELDS:
        fields[name] = _field_json(content, name)
    else:
        fields[name] = _field_text(content, name)


def _field_text(content: bytes, name: str) -> str:
    if len(content) > _MAX_FIELD_BYTES:
        raise ApiError(413, "form_field_too_large", "a form field is too large", param=name)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise _invalid_form("a field is not UTF-8", name) from None


def _field_json(content: bytes, name: str) -> Any:
    try:
        return read_json(_field_text(content, name).encode())
    except ApiError as error:
        raise ApiError(error.status, error.code, "a field is not valid JSON", param=name) from None
