"""JSON lines in the files of one folder, here or in an object store: what `--ray` leaves.

What is to be done is cut into blocks, and a block comes to one file, its shard, whose name says
which block it is and by a digest what was asked. A shard is there whole or not at all, so that one
that is there is done: whatever is killed, and however often, each record is in one shard, once.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar

from simpleseg.batch.journal import write_atomically

Item = TypeVar("Item")
Line = Mapping[str, Any]

_PREFIX = "part-"


class ForeignShardsError(Exception):
    """The folder holds shards of something else; the message is one line for the user."""


@dataclass(frozen=True)
class Block(Generic[Item]):
    """Records that come to the shard ``name``, and lines that it is to have beside theirs."""

    name: str
    items: Sequence[Item]
    kept: Sequence[Line] = ()


def cut(items: Sequence[Item], asked: Callable[[Item], str], size: int) -> list[Block[Item]]:
    """Blocks of ``size``; ``asked`` is what a record's line answers."""
    starts = range(0, len(items), size)
    return [
        Block(f"{_PREFIX}{number:06}-{_digest(map(asked, some))}.jsonl", some)
        for number, some in enumerate(items[start : start + size] for start in starts)
    ]


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:12]


class Shards:
    """The folder at a path, or at a URL that fsspec knows; made where there is none."""

    def __init__(self, place: str) -> None:
        fsspec: Any = import_module("fsspec")  # without types that a strict check could use
        self.place = place
        self._files, self._folder = fsspec.core.url_to_fs(place)
        self._is_here = "file" in self._files.protocol
        self._files.makedirs(self._folder, exist_ok=True)

    def missing(self, blocks: Sequence[Block[Item]]) -> list[Block[Item]]:
        """Blocks that have no shard yet. Raises ForeignShardsError for shards of other blocks."""
        found = self._names()
        foreign = sorted(found - {block.name for block in blocks})
        if foreign:
            raise ForeignShardsError(
                f"{self.place} holds the answers to something else ({foreign[0]}): "
                f"name another output"
            )
        return [block for block in blocks if block.name not in found]

    def _names(self) -> set[str]:
        self._files.invalidate_cache()
        paths = self._files.ls(self._folder, detail=False)
        return {name for path in paths if (name := path.rpartition("/")[2]).startswith(_PREFIX)}

    def read(self, name: str) -> list[dict[str, Any]]:
        content: bytes = self._files.cat_file(f"{self._folder}/{name}")
        return [json.loads(line) for line in content.splitlines()]

    def write(self, name: str, lines: Iterable[Line]) -> None:
        """All at once, in place of a shard that is there. Raises OSError."""
        texts = (json.dumps(line, ensure_ascii=False, separators=(",", ":")) for line in lines)
        content = "".join(f"{text}\n" for text in texts).encode()
        if self._is_here:
            write_atomically(Path(self._folder) / name, content)
        else:  # an object appears when it is whole
            self._files.pipe_file(f"{self._folder}/{name}", content)

    def tidy(self) -> None:
        """Remove what killed processes left of files that they had begun."""
        if self._is_here:
            for path in Path(self._folder).glob(f".{_PREFIX}*"):
                path.unlink(missing_ok=True)
