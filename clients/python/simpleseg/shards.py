"""JSON lines in the files of one folder, here or in an object store: what `--ray` leaves.

What is to be done is cut into blocks, and a block comes to one file, its shard, whose name says
which block it is and by a digest what was asked. A shard is there whole or not at all, so that one
that is there is done: whatever is killed, and however often, each record is in one shard, once.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from simpleseg.store import Store

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


class Shards(Store):
    """The files of a folder that hold blocks."""

    def missing(self, blocks: Sequence[Block[Item]]) -> list[Block[Item]]:
        """Blocks that have no shard yet. Raises ForeignShardsError for shards of other blocks."""
        found = self.names(f"{_PREFIX}*")
        foreign = sorted(found - {block.name for block in blocks})
        if foreign:
            raise ForeignShardsError(
                f"{self.place} holds the answers to something else ({foreign[0]}): "
                f"name another output"
            )
        return [block for block in blocks if block.name not in found]

    def read(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.read_bytes(name).splitlines()]

    def write(self, name: str, lines: Iterable[Line]) -> None:
        """All at once, in place of a shard that is there. Raises OSError."""
        texts = (json.dumps(line, ensure_ascii=False, separators=(",", ":")) for line in lines)
        self.write_bytes(name, "".join(f"{text}\n" for text in texts).encode())

    def tidy(self) -> None:
        """Remove what killed processes left of files that they had begun."""
        for name in self.names(f".{_PREFIX}*"):
            self.remove(name)
