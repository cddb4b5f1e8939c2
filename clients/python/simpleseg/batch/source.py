"""What a batch asks: a folder of images, a JSONL file of requests, or images in larger files."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from simpleseg.batch import BatchError
from simpleseg.batch.stored import IMAGE_SUFFIXES, Cell, Member, is_stored, stored
from simpleseg.protocol import first_problem
from simpleseg.schema import SegmentRequest

_URLS = ("/v1/segment", "/segment")
_REQUEST_KEYS = frozenset({"custom_id", "method", "url", "body"})
_REMOTE = ("http://", "https://", "data:")


@dataclass(frozen=True)
class Entry:
    """One request. ``fields`` are its JSON body; the image at ``path``, where there is one, is put
    in when its turn comes. ``name`` is what a data set calls the image."""

    custom_id: str
    fields: Mapping[str, Any]
    path: Path | Member | Cell | None
    name: str
    digest: str

    def body(self) -> str:
        """The JSON body. Raises OSError for an unreadable image."""
        if self.path is None:
            return json.dumps(self.fields)
        content = base64.b64encode(self.path.read_bytes()).decode("ascii")
        return json.dumps({**self.fields, "image": {"base64": content}})


@dataclass(frozen=True)
class Source:
    """The entries, as often as they are needed, and for the ``custom_id`` of each, of which there
    are no two alike, its digest."""

    entries: Callable[[], Iterator[Entry]]
    digests: Mapping[str, str]


def read_source(place: str | Path, phrases: Sequence[str], max_points: int | None) -> Source:
    """The folder or the file at ``place``, checked as a whole.

    ``phrases`` are asked about every image of a folder, and in lines that have no prompt;
    ``max_points`` counts where a line says nothing else.

    Raises BatchError that names the line at fault, and OSError.
    """
    defaults: dict[str, Any] = {} if max_points is None else {"max_points": max_points}

    path = Path(place)

    def entries() -> Iterator[Entry]:
        if is_stored(str(place)):
            return _in_stored(str(place), list(phrases), defaults)
        found = _in_folder if path.is_dir() else _in_file
        return found(path, list(phrases), defaults)

    digests: dict[str, str] = {}
    for entry in entries():
        if entry.custom_id in digests:
            raise BatchError(f"{place}: the custom_id {entry.custom_id!r} is there twice")
        digests[entry.custom_id] = entry.digest
    if not digests:
        raise BatchError(f"{place}: there is nothing to do")
    return Source(entries, digests)


def _in_stored(place: str, phrases: list[str], defaults: Mapping[str, Any]) -> Iterator[Entry]:
    for one in stored(place):
        prompts = {"prompts": phrases} if phrases and not one.fields else {}
        try:
            yield _entry(one.name, {**defaults, **prompts, **one.fields}, one.image, one.name)
        except BatchError as error:
            raise BatchError(f"{one.name}: {error}") from None


def _in_folder(folder: Path, phrases: list[str], defaults: Mapping[str, Any]) -> Iterator[Entry]:
    if not phrases:
        raise BatchError(f"{folder} is a folder: say what to find in its images")
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in name.split("/"))
        if path.suffix.lower() in IMAGE_SUFFIXES and not hidden and path.is_file():
            yield _entry(name, {**defaults, "prompts": phrases}, path, name)


def _in_file(file: Path, phrases: list[str], defaults: Mapping[str, Any]) -> Iterator[Entry]:
    prompts = {"prompts": phrases} if phrases else {}
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield _of_line(_parsed(line), file.parent, prompts, defaults)
            except BatchError as error:
                raise BatchError(f"{file}:{number}: {error}") from None


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        raise BatchError("not JSON") from None
    found = _object(value)
    if found is None:
        raise BatchError("not an object")
    return found


def _object(value: Any) -> dict[str, Any] | None:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _of_line(
    line: dict[str, Any], folder: Path, prompts: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Entry:
    plain = "body" not in line
    fields = dict(line) if plain else _batch_body(line)
    custom_id = None if plain and "custom_id" not in line else _custom_id(line)
    fields.pop("custom_id", None)
    if "prompt" not in fields and "prompts" not in fields:
        fields |= prompts
    path = _path_in(fields.get("image"), plain)
    if path is not None:
        del fields["image"]
        return _entry(custom_id, {**defaults, **fields}, folder / path, path)
    if plain and isinstance(fields.get("image"), str):
        fields["image"] = {"url": fields["image"]}
    return _entry(custom_id, {**defaults, **fields}, None, _name_of(fields.get("image")))


def _batch_body(line: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a line of OpenAI's batch format."""
    unknown = sorted(line.keys() - _REQUEST_KEYS)
    if unknown:
        raise BatchError(f"unknown key {unknown[0]!r}")
    if line.get("method", "POST") != "POST" or line.get("url", _URLS[0]) not in _URLS:
        raise BatchError(f"only POST {_URLS[0]} is asked")
    body = _object(line["body"])
    if body is None:
        raise BatchError("body is not an object")
    return dict(body)


def _custom_id(line: Mapping[str, Any]) -> str:
    found = line.get("custom_id")
    if not isinstance(found, str) or not found:
        raise BatchError("custom_id must be a text")
    return found


def _path_in(image: Any, plain: bool) -> str | None:
    """The path that the image is given by: ``{"path": ...}``, in a plain line the path itself."""
    if plain and isinstance(image, str):
        return None if image.startswith(_REMOTE) else image
    if isinstance(image, dict) and image.keys() == {"path"} and isinstance(image["path"], str):
        return image["path"]
    return None


def _name_of(image: Any) -> str:
    url = (_object(image) or {}).get("url")
    return url if isinstance(url, str) and not url.startswith("data:") else ""


def _entry(
    custom_id: str | None,
    fields: Mapping[str, Any],
    path: Path | Member | Cell | None,
    name: str,
) -> Entry:
    _check(fields if path is None else {**fields, "image": {"base64": ""}})
    asked = json.dumps([fields, None if path is None else name], sort_keys=True)
    digest = hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    own_id = custom_id or f"{name or 'image'}-{digest[:8]}"
    return Entry(own_id, fields, path, name or own_id, digest)


def _check(fields: Mapping[str, Any]) -> None:
    """Raises BatchError where ``POST /segment`` would refuse the fields, or would stream."""
    try:
        request = SegmentRequest.model_validate(fields)
    except ValidationError as error:
        raise BatchError(first_problem(error)) from None
    if request.image is None:
        raise BatchError("image is missing")
    if request.stream:
        raise BatchError("stream: answers of a batch are not streamed")
