"""Log lines: one for each request, as JSON or as text, that no client can forge.

What a record says in ``extra={"fields": {...}}`` becomes the fields of a JSON line, in place of its
message; ``LINE_FIELDS`` are those of a request, always all of them and in this order. Strings are
escaped, long ones cut. Of an exception the line tells the type and where it was raised, and its
text, which may repeat what a client sent, only with ``extra={"with_text": True}``.
"""

import json
import logging
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

LINE_FIELDS = (
    "event",
    "request_id",
    "trace_id",
    "key_name",
    "method",
    "route",
    "status",
    "outcome",
    "duration_ms",
    "stages_ms",
)
MAX_CHARACTERS = 2000
"""Of each string in a line."""
MAX_FRAMES = 40

_ERROR_TEXT_CHARACTERS = 500


def set_up(
    log_format: Literal["auto", "json", "text"], level: str, stream: TextIO | None = None
) -> None:
    """Send all log records to ``stream`` (standard error), replacing what was set up before.

    Of other libraries only warnings are logged: at ``info`` some name the addresses that clients
    asked for.
    """
    target = sys.stderr if stream is None else stream
    as_json = log_format == "json" or (log_format == "auto" and not target.isatty())
    handler = logging.StreamHandler(target)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in ("simpleseg_server", "simpleseg", "uvicorn"):
        logging.getLogger(name).setLevel(level.upper())
    logging.getLogger("uvicorn.access").disabled = True


class JsonFormatter(logging.Formatter):
    """One JSON object on one line of ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
        return json.dumps(_cut(line | _said(record)), ensure_ascii=True, default=str)


class TextFormatter(logging.Formatter):
    """The message on one line; the frames of an exception follow, indented."""

    def format(self, record: logging.LogRecord) -> str:
        said = _said(record)
        frames = said.get("frames", [])
        words = [_time(record), record.levelname, record.getMessage(), *_error_words(said)]
        return "\n    ".join(printable(_cut(line)) for line in [" ".join(words), *frames])


def _said(record: logging.LogRecord) -> dict[str, Any]:
    """The fields of a record, or its message, and what it tells of an exception."""
    fields: Mapping[str, Any] | None = getattr(record, "fields", None)
    said = {"message": record.getMessage()} if fields is None else dict(fields)
    if record.exc_info and record.exc_info[1] is not None:
        said |= error_fields(record.exc_info[1], getattr(record, "with_text", False))
    return said


def _error_words(said: Mapping[str, Any]) -> list[str]:
    return [f"{name}={said[name]}" for name in ("error", "cause", "text") if name in said]


def log_request(logger: logging.Logger, fields: Mapping[str, Any]) -> None:
    """Write the line of a request; fields that are left out are null."""
    line = {name: fields.get(name) for name in LINE_FIELDS} | {"event": "request"}
    text = " ".join(filter(None, (_word(*field) for field in line.items())))
    logger.info("%s", text, extra={"fields": line})


def error_fields(error: BaseException, with_text: bool = False) -> dict[str, Any]:
    """Type and frames of an exception; its text only if that can hold nothing of a client's."""
    while isinstance(error, BaseExceptionGroup):  # what a task group makes of the one that matters
        error = error.exceptions[0]
    frames = traceback.extract_tb(error.__traceback__)[-MAX_FRAMES:]
    fields: dict[str, Any] = {
        "error": type(error).__qualname__,
        "frames": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
    if with_text:
        fields["text"] = str(error)[:_ERROR_TEXT_CHARACTERS]
    if error.__cause__ is not None:
        fields["cause"] = type(error.__cause__).__qualname__
    return fields


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _cut(value: Any) -> Any:
    """The value with every string in it at most ``MAX_CHARACTERS`` long."""
    if isinstance(value, str):
        return value if len(value) <= MAX_CHARACTERS else value[:MAX_CHARACTERS] + "..."
    if isinstance(value, Mapping):
        return {key: _cut(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cut(item) for item in value]
    return value


def _word(name: str, value: Any) -> str:
    """
    >>> _word("status", 200), _word("stages_ms", {"parse": 1.5}), _word("key_name", None)
    ('status=200', 'parse_ms=1.5', '')
    """
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return " ".join(f"{stage}_ms={ms:g}" for stage, ms in value.items())
    return f"{name}={value}"


def printable(text: str) -> str:
    """The text with everything that a terminal or a log reader could act on escaped.

    >>> printable("a\\nb\\x1b[2J\\u2028é")
    'a\\\\nb\\\\x1b[2J\\\\u2028\\\\xe9'
    """
    return "".join(
        c if " " <= c <= "~" else c.encode("unicode_escape").decode("ascii") for c in text
    )
