"""Requests as bytes, and answers read as they arrive, of both endpoints; no input or output here.

Reading is kept cheap: of a stream only the events that say something about time are looked at, and
only the answer itself is parsed.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from simpleseg.bench.questions import Question
from simpleseg.errors import InvalidInputError
from simpleseg.protocol import DEFAULT_BASE_URL, SEGMENT_PATH
from simpleseg.schema import PromptItem
from simpleseg_polygon.codec import parse_region
from simpleseg_polygon.geometry import Box, Point, Region
from simpleseg_polygon.prompts import instruction, phrase

Endpoint = Literal["segment", "chat"]
CHAT_PATH = "/v1/chat/completions"
_MEDIA_TYPES = {"iVBOR": "png", "/9j/": "jpeg", "R0lG": "gif", "UklGR": "webp"}


@dataclass(frozen=True)
class Target:
    """Where a load goes, and how it asks.

    ``extra`` are further fields of every body (``max_points``; ``response_format`` or
    ``structured_outputs`` for chat). ``timeout_s`` bounds a request as a whole. The chat endpoint
    may be any server's that speaks OpenAI's protocol; it needs the ``model``'s name.
    """

    base_url: str = DEFAULT_BASE_URL
    endpoint: Endpoint = "segment"
    stream: bool = False
    model: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 120.0

    @property
    def url(self) -> str:
        return self.base_url.rstrip("/") + (
            SEGMENT_PATH if self.endpoint == "segment" else CHAT_PATH
        )

    @property
    def headers(self) -> dict[str, str]:
        key = {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return {"content-type": "application/json", **key}

    def is_greedy(self, question: Question) -> bool:
        """Whether the same question must have the same answer."""
        asked = {**question.fields, **self.extra}
        return not asked.get("temperature") and asked.get("samples", 1) == 1

    def body(self, question: Question) -> bytes:
        """Raises InvalidInputError for what the endpoint cannot be asked."""
        made = _segment_body if self.endpoint == "segment" else _chat_body
        return json.dumps(made(self, question)).encode()


def _segment_body(target: Target, question: Question) -> dict[str, Any]:
    named = {"model": target.model} if target.model else {}
    streamed = {"stream": True} if target.stream else {}
    return {"image": question.image, **question.fields, **named, **target.extra, **streamed}


def _chat_body(target: Target, question: Question) -> dict[str, Any]:
    prompts = question.prompts()
    if len(prompts) != 1 or question.fields.get("task", "region") != "region":
        raise InvalidInputError("the chat endpoint is asked about one region at a time")
    kept = {"prompt", "prompts", "task"}
    options = {name: value for name, value in question.fields.items() if name not in kept}
    parts = [
        {"type": "image_url", "image_url": {"url": _image_url(question.image)}},
        {"type": "text", "text": instruction("region", _phrase(prompts[0]))},
    ]
    body: dict[str, Any] = {
        "model": target.model,
        "messages": [{"role": "user", "content": parts}],
        "temperature": 0,
    }
    usage = {"stream": True, "stream_options": {"include_usage": True}} if target.stream else {}
    return {**body, **options, **target.extra, **usage}


def _image_url(image: Mapping[str, str]) -> str:
    if "url" in image:
        return image["url"]
    if "base64" not in image:
        raise InvalidInputError("a kept image cannot be sent to the chat endpoint")
    data = image["base64"]
    kinds = [kind for start, kind in _MEDIA_TYPES.items() if data.startswith(start)]
    return f"data:image/{kinds[0] if kinds else 'png'};base64,{data}"


def _phrase(prompt: PromptItem) -> str:
    rings = tuple(tuple(Point(*xy) for xy in ring) for ring in prompt.polygons or ())
    return phrase(
        text=prompt.text,
        point=Point(*prompt.point) if prompt.point else None,
        box=Box(*prompt.box) if prompt.box else None,
        region=Region(rings) if rings else None,
    )


@dataclass(frozen=True)
class Told:
    """What one prompt was answered: how it ended, and the answer as text, to compare."""

    status: str
    text: str

    def region(self) -> Region:
        """The region in the text, which is in the polygon language or JSON's of it."""
        return parse_region(self.text).value


@dataclass(frozen=True)
class Answer:
    """A whole answer; ``tokens`` and the server's own time to the first token, in seconds, where it
    tells them."""

    told: tuple[Told, ...]
    tokens: int | None = None
    server_first_token_s: float | None = None


class AnswerError(Exception):
    """An answer that is none; the message is its kind in a table of errors."""


def read_segment(content: Mapping[str, Any]) -> Answer:
    """The answer of ``POST /segment``. Raises AnswerError."""
    try:
        told = tuple(_told(result) for result in content["results"])
        first_ms = content.get("timings_ms", {}).get("first_token")
        tokens = content["usage"]["completion_tokens"]
    except (KeyError, TypeError) as error:
        raise AnswerError("not an answer of /segment") from error
    return Answer(told, tokens, None if first_ms is None else first_ms / 1e3)


def _told(result: Mapping[str, Any]) -> Told:
    shape = next((result[k] for k in ("polygons", "boxes", "points", "text") if k in result), None)
    return Told(result["status"], json.dumps(shape))


def read_chat(content: Mapping[str, Any]) -> Answer:
    """The answer of the chat endpoint, unstreamed. Raises AnswerError."""
    try:
        choice = content["choices"][0]
        usage: Mapping[str, Any] = content.get("usage") or {}
        tokens = usage.get("completion_tokens")
        return chat_answer(choice["message"]["content"], choice["finish_reason"], tokens)
    except (KeyError, IndexError, TypeError) as error:
        raise AnswerError("not an answer of a chat") from error


def chat_answer(text: str, finish_reason: str | None, tokens: int | None) -> Answer:
    """The status of any server's text is ours to say: it is parsed."""
    if finish_reason == "length":
        return Answer((Told("truncated", text),), tokens)
    parsed = parse_region(text)
    return Answer((Told(parsed.status, text),), tokens)


@dataclass
class Marks:
    """When things arrived, in the clock's seconds."""

    first_byte: float | None = None
    first_token: float | None = None
    first_point: float | None = None


class PlainReader:
    """Reads an answer that comes as a whole."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.marks = Marks()
        self._read = read_segment if endpoint == "segment" else read_chat
        self._chunks: list[bytes] = []

    def feed(self, chunk: bytes, now: float) -> None:
        self.marks.first_byte = self.marks.first_byte or now
        self._chunks.append(chunk)

    def answer(self) -> Answer:
        return self._read(_parsed(b"".join(self._chunks)))


class _EventReader:
    """Cuts a stream of server-sent events into theirs."""

    def __init__(self) -> None:
        self.marks = Marks()
        self._rest = b""
        self.is_done = False

    def feed(self, chunk: bytes, now: float) -> None:
        self.marks.first_byte = self.marks.first_byte or now
        *events, self._rest = (self._rest + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
        for name, data in _fields(events):
            if data == b"[DONE]":
                self.is_done = True
            else:
                self._event(name, data, now)

    def _event(self, name: bytes, data: bytes, now: float) -> None:
        raise NotImplementedError


class SegmentStreamReader(_EventReader):
    """Reads a stream of ``POST /segment``."""

    def __init__(self) -> None:
        super().__init__()
        self._completed: Answer | None = None

    def _event(self, name: bytes, data: bytes, now: float) -> None:
        if name == b"segmentation.points.delta":
            self.marks.first_point = self.marks.first_point or now
        elif name == b"segmentation.completed":
            self._completed = read_segment(_parsed(data)["response"])
        elif name == b"error":
            raise _stream_error(_parsed(data))

    def answer(self) -> Answer:
        if self._completed is None or not self.is_done:
            raise AnswerError("stream broke off")
        return self._completed


class ChatStreamReader(_EventReader):
    """Reads a stream of a chat: the first choice."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[str] = []
        self._reason: str | None = None
        self._tokens: int | None = None

    def _event(self, name: bytes, data: bytes, now: float) -> None:
        chunk = _parsed(data)
        if "error" in chunk:
            raise _stream_error(chunk)
        if chunk.get("usage"):
            self._tokens = chunk["usage"]["completion_tokens"]
        for choice in chunk.get("choices", ()):
            self._reason = choice.get("finish_reason") or self._reason
            piece = choice.get("delta", {}).get("content")
            if piece:
                self._piece(piece, now)

    def _piece(self, piece: str, now: float) -> None:
        self._pieces.append(piece)
        self.marks.first_token = self.marks.first_token or now
        # The first bracket that closes is the first point's.
        if self.marks.first_point is None and "]" in piece and "," in "".join(self._pieces):
            self.marks.first_point = now

    def answer(self) -> Answer:
        if self._reason is None or not self.is_done:
            raise AnswerError("stream broke off")
        return chat_answer("".join(self._pieces), self._reason, self._tokens)


Reader = PlainReader | SegmentStreamReader | ChatStreamReader


def reader_of(target: Target) -> Reader:
    if not target.stream:
        return PlainReader(target.endpoint)
    return SegmentStreamReader() if target.endpoint == "segment" else ChatStreamReader()


def error_kind(status: int, content: bytes) -> str:
    """A refusal in a table of errors: its status and, where it has one, its code.

    >>> error_kind(503, b'{"error": {"code": "queue_full"}}')
    'http 503 queue_full'
    """
    try:
        code = json.loads(content)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        code = None
    return f"http {status}" if code is None else f"http {status} {code}"


def _fields(events: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    for event in events:
        name, data = b"", b""
        for line in event.split(b"\n"):
            if line.startswith(b"event:"):
                name = line[6:].strip()
            elif line.startswith(b"data:"):
                data += line[5:].strip()
        if data:
            yield name, data


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        content: Any = json.loads(data)
    except ValueError as error:
        raise AnswerError("not JSON") from error
    if not isinstance(content, dict):
        raise AnswerError("not an object")
    return cast(dict[str, Any], content)


def _stream_error(content: Mapping[str, Any]) -> AnswerError:
    error: Any = content.get("error")
    told = cast(dict[str, Any], error) if isinstance(error, dict) else {}
    return AnswerError(f"stream {told.get('code') or 'error'}")
