"""The answers of a batch: a JSONL file that is only ever appended to.

A line is written in one piece as soon as its answer is there, so that killing the process loses no
answer; the disk is asked to keep it at least once a second, so that a power cut loses little. What
a cut left of a last line is removed when the file is opened again.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast
from uuid import uuid4

from simpleseg.batch import BatchError

SYNC_INTERVAL_S = 1.0
_FOREIGN = "is not a line of a batch's output"


@dataclass(frozen=True)
class Mark:
    """Where an answer stands in the file, what it answers, and whether it is an error."""

    offset: int
    digest: str
    failed: bool


class Journal:
    """The file at ``path``, made where there is none, locked against a second run.

    Raises BatchError where another run has it, or where a line in it is not one of a batch.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._synced_at = time.monotonic()
        self.marks: dict[str, Mark] = {}
        self._file = path.open("a+b", buffering=0)
        try:
            self._claim()
            self._read_marks()
        except BaseException:
            self._file.close()
            raise

    def _claim(self) -> None:
        if sys.platform == "win32":
            return
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BatchError(f"{self._path}: another run writes to it") from None

    def _read_marks(self) -> None:
        offset = 0
        with self._path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    entry = _mark(line, offset)
                except BatchError as error:
                    raise BatchError(f"{self._path}:{number} {error}") from None
                if entry is not None:
                    self.marks[entry[0]] = entry[1]
                elif line.endswith(b"\n"):
                    raise BatchError(f"{self._path}:{number} {_FOREIGN}")
                if not line.endswith(b"\n"):
                    self._mend(offset, is_whole=entry is not None)
                    return
                offset += len(line)

    def _mend(self, offset: int, *, is_whole: bool) -> None:
        """The last line lacks its end: a whole one gets it, a torn one goes."""
        if is_whole:
            self._write(b"\n")
        else:
            self._file.truncate(offset)

    def append(self, line: Mapping[str, Any]) -> None:
        """Write a line: whole, and before this returns. Threads may. Raises OSError."""
        data = json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            offset = self._file.seek(0, os.SEEK_END)
            entry = _mark(data, offset)
            assert entry is not None, "only a batch's lines are appended"
            try:
                self._write(data)
            except OSError as error:  # a full disk must not leave half a line before the next one
                self._file.truncate(offset)
                raise OSError(error.errno, error.strerror, str(self._path)) from error
            self.marks[entry[0]] = entry[1]
            if time.monotonic() - self._synced_at >= SYNC_INTERVAL_S:
                self._sync()

    def _write(self, data: bytes) -> None:
        while data:
            data = data[self._file.write(data) :]

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced_at = time.monotonic()

    def line(self, custom_id: str) -> dict[str, Any]:
        """The answer with this id."""
        with self._path.open("rb") as lines:
            lines.seek(self.marks[custom_id].offset)
            found: dict[str, Any] = json.loads(lines.readline())
        return found

    @property
    def failed(self) -> int:
        """How many of the answers are errors."""
        return sum(mark.failed for mark in self.marks.values())

    def close(self) -> None:
        """See to it that the disk has everything."""
        self._sync()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def drop_failed(path: Path) -> None:
    """Take the errors out of the file, so that they are asked again. It is replaced as a whole."""
    with Journal(path) as journal:
        if not journal.failed:
            return
        kept = sorted(m.offset for m in journal.marks.values() if not m.failed)
        with path.open("rb") as lines:
            write_atomically(path, b"".join(_line_at(lines, offset) for offset in kept))


def _line_at(lines: Any, offset: int) -> bytes:
    lines.seek(offset)
    line: bytes = lines.readline()
    return line


def write_atomically(path: Path, content: bytes) -> None:
    """The file at ``path`` has its old content or all of the new one, whatever happens, and however
    many write it at once."""
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _mark(line: bytes, offset: int) -> tuple[str, Mark] | None:
    """The id of a line and its mark; None for what is not JSON, as the beginning of a line is.

    Raises BatchError for another program's line, with the field at fault.
    """
    try:
        value = json.loads(line)
    except ValueError:
        return None
    if not isinstance(value, dict):
        raise BatchError(_FOREIGN)
    found = cast("dict[str, Any]", value)
    error, response = found.get("error"), found.get("response")
    if error is None and not (isinstance(response, dict) and "status_code" in response):
        raise BatchError(f"{_FOREIGN}: response has no status_code, and there is no error")
    digest = _text_in(found, "request_digest")
    return _text_in(found, "custom_id"), Mark(offset, digest, is_error(found))


def is_error(line: Mapping[str, Any]) -> bool:
    return line.get("error") is not None or line["response"]["status_code"] != 200


def _text_in(line: Mapping[str, Any], name: str) -> str:
    found = line.get(name)
    if not isinstance(found, str):
        raise BatchError(f"{_FOREIGN}: {name} must be a text")
    return found
