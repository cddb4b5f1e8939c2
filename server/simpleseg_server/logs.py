"""Log lines: one for each request, as JSON or as text, that no client can forge.

What a record says in ``extra={"fields": {...}}`` becomes the fields of a JSON line, in place of its
message; ``LINE_FIELDS`` are those of a request, always all of them and in this order. Strings are
escaped, long ones cut. A line that cannot be written at once - the disk is full, nobody reads the
pipe - is dropped and counted: a log that fails never holds up a request. Of an exception the line
tells the type and where it was raised, and its text, which may repeat what a client sent, only with
``extra={"with_text": True}``.
"""

import io
import json
import logging
import os
import select
import stat
import sys
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import PurePath
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
MAX_LINE_BYTES = 4096
"""Of a line: what a pipe takes as a whole and without a wait (PIPE_BUF), if it takes anything."""

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
    handler = LineHandler(target)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in ("simpleseg_server", "simpleseg", "uvicorn"):
        logging.getLogger(name).setLevel(level.upper())
    logging.getLogger("uvicorn.access").disabled = True


class LineHandler(logging.Handler):
    """Writes lines to a stream, or drops them where it would have to wait or fail."""

    dropped = 0
    """Lines that were not written, of all handlers of the process."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._write = _writer(stream)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            is_written = self._write(self.format(record) + "\n")
        except Exception:  # whatever a full disk, a closed pipe or a bad record raises
            is_written = False
        LineHandler.dropped += not is_written


def _writer(stream: TextIO) -> Callable[[str], bool]:
    """What writes a line and says whether it did."""
    try:
        descriptor = stream.fileno()
    except (OSError, io.UnsupportedOperation):
        return lambda line: stream.write(line) > 0
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return lambda line: os.write(descriptor, line.encode("ascii")) > 0
    ready = select.poll()
    ready.register(descriptor, select.POLLOUT)

    def write(line: str) -> bool:
        # A pipe that takes anything takes a line.
        return bool(ready.poll(0)) and os.write(descriptor, line.encode("ascii")) > 0

    return write


class JsonFormatter(logging.Formatter):
    """One JSON object on one line of ASCII, with shorter strings where it would be too long."""

    def format(self, record: logging.LogRecord) -> str:
        head = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
        return _bounded(lambda most: json.dumps(_cut(head | _said(record), most), default=str))


class TextFormatter(logging.Formatter):
    """The message on one line; the frames of an exception follow, indented."""

    def format(self, record: logging.LogRecord) -> str:
        said = _said(record)
        frames = said.get("frames", [])
        words = [_time(record), record.levelname, record.getMessage(), *_error_words(said)]
        lines = [" ".join(words), *frames]
        return _bounded(lambda most: "\n    ".join(printable(_cut(line, most)) for line in lines))


def _bounded(text: Callable[[int], str]) -> str:
    """What fits a line of the text that ``text`` gives for strings of at most so many characters,
    a third as many each time; at worst its beginning, which then is no JSON."""
    most = MAX_CHARACTERS
    while len(found := text(most)) >= MAX_LINE_BYTES and most > 8:
        most //= 3
    return found[: MAX_LINE_BYTES - 1]


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
        "frames": [f"{_module(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames],
    }
    if with_text:
        fields["text"] = str(error)[:_ERROR_TEXT_CHARACTERS]
    if error.__cause__ is not None:
        fields["cause"] = type(error.__cause__).__qualname__
    return fields


def _module(path: str) -> str:
    """A file without where it is installed.

    >>> _module("/opt/x/site-packages/simpleseg_server/engines/vllm.py")
    'simpleseg_server/engines/vllm.py'
    """
    parents = [entry for entry in sys.path if entry and PurePath(path).is_relative_to(entry)]
    found = PurePath(path).relative_to(max(parents, key=len)) if parents else PurePath(path)
    return "/".join(found.parts[-3:])


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _cut(value: Any, most: int) -> Any:
    """The value with every string in it at most ``most`` characters long."""
    if isinstance(value, str):
        return value if len(value) <= most else value[:most] + "..."
    if isinstance(value, Mapping):
        return {_cut(key, most): _cut(item, most) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cut(item, most) for item in value]
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
