"""What was done to each image, one line each, so that a run goes on where it was stopped."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


class Journal:
    """The lines of a file that is open to one run at a time.

    The first line holds the run's settings; a line is written in one piece and reaches the disk
    before the next image begins. What a crash left of a line is cut off.
    """

    def __init__(self, file: IO[bytes], settings: dict[str, Any]) -> None:
        self._file = file
        lines = self._whole_lines()
        if not lines:
            self._append({"settings": settings})
        elif lines[0].get("settings") != settings:
            changed = _changed(lines[0].get("settings", {}), settings)
            raise ValueError(
                f"{file.name} is of a run with other settings ({changed}); name another folder"
            )
        self._entries = {entry["image"]: entry for entry in lines[1:]}

    def _whole_lines(self) -> list[dict[str, Any]]:
        content = self._file.read()
        end = content.rfind(b"\n") + 1
        self._file.truncate(end)
        self._file.seek(end)
        return [json.loads(line) for line in content[:end].splitlines()]

    def _append(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def add(self, image: str, entry: dict[str, Any]) -> None:
        """Record an image that has no entry yet."""
        self._append({"image": image, **entry})
        self._entries[image] = {"image": image, **entry}

    def __contains__(self, image: str) -> bool:
        return image in self._entries

    def __getitem__(self, image: str) -> dict[str, Any]:
        return self._entries[image]


@contextmanager
def open_journal(path: Path, settings: dict[str, Any]) -> Iterator[Journal]:
    """Raises ValueError where another run has it, or it is of other settings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{path} is in use by another run") from error
        file.seek(0)
        yield Journal(file, settings)


def _changed(before: dict[str, Any], after: dict[str, Any]) -> str:
    names = sorted(before.keys() | after.keys())
    return ", ".join(name for name in names if before.get(name) != after.get(name))
