"""Files of one folder, here or in an object store, each of which is there whole or not at all."""

import shutil
from contextlib import suppress
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

from simpleseg.batch.journal import write_atomically


def is_url(place: str) -> bool:
    """Whether it is one of fsspec's, not a path."""
    return "://" in place


class Store:
    """The folder at a path, or at a URL that fsspec knows; made where there is none."""

    def __init__(self, place: str) -> None:
        fsspec: Any = import_module("fsspec")  # without types that a strict check could use
        self.place = place
        self._files, self._folder = fsspec.core.url_to_fs(place)
        self._is_here = "file" in self._files.protocol
        self._files.makedirs(self._folder, exist_ok=True)

    def names(self, pattern: str) -> set[str]:
        """Of files that match."""
        self._files.invalidate_cache()
        try:
            paths = self._files.ls(self._folder, detail=False)
        except FileNotFoundError:  # where folders are parts of names, an empty one is none
            return set()
        return {name for path in paths if fnmatch(name := path.rpartition("/")[2], pattern)}

    def read_bytes(self, name: str) -> bytes:
        content: bytes = self._files.cat_file(self._path(name))
        return content

    def write_bytes(self, name: str, content: bytes) -> None:
        """All at once, in place of a file that is there. Raises OSError."""
        if self._is_here:
            write_atomically(Path(self._path(name)), content)
        else:  # an object appears when it is whole
            self._files.pipe_file(self._path(name), content)

    def copy(self, file: Path) -> None:
        """The file under its name, all at once. Raises OSError."""
        target = self._path(file.name)
        if self._is_here:
            partial = Path(self._path(f".{file.name}.{uuid4().hex}"))
            shutil.copyfile(file, partial)
            partial.replace(target)
        else:
            self._files.put_file(str(file), target)

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._files.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"
