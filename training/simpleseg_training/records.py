"""Instruction pairs on disk: JSON lines, Parquet, or WebDataset shards, by the file's name.

A record is one pair:

    {"image": path, "instruction": str, "answer": str, "task": [source, target], "id": str}

``image`` is relative to the file's folder (in a shard, to the shard). What reinforcement learning
asks has the true mask as well: ``truth_rle``, COCO's ``{"size": [height, width], "counts": str}``.
"""

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Protocol

from simpleseg_polygon.raster import Rle

SHARD_RECORDS = 1000
"""Records in a WebDataset shard."""
_ROW_GROUP = 10_000


class ImageFile(Protocol):
    """A path, or what is inside a larger file and is read in the same way."""

    @property
    def suffix(self) -> str: ...

    def read_bytes(self) -> bytes:
        """Raises OSError."""
        ...


@dataclass(frozen=True)
class Record:
    """One pair. ``id`` is unique in its file and holds no dot, which WebDataset's keys may not."""

    image: ImageFile
    instruction: str
    answer: str
    task: tuple[str, str]
    id: str
    truth_rle: Rle | None = None

    def to_json(self, image: str) -> dict[str, Any]:
        """The record as JSON values, with that path of its image."""
        values: dict[str, Any] = {
            "image": image,
            "instruction": self.instruction,
            "answer": self.answer,
            "task": list(self.task),
            "id": self.id,
        }
        if self.truth_rle is not None:
            values["truth_rle"] = self.truth_rle.to_coco()
        return values


def write_records(records: Iterable[Record], out: Path) -> int:
    """Write to ``out`` by its suffix (``.jsonl``, ``.parquet``; ``.tar`` writes shards
    ``out-000000.tar``, ...) and say how many. The file appears when it is whole.

    Raises ValueError for another suffix, before anything is read, and in forms that name images by
    their paths for an image without one.
    """
    write = _WRITERS.get(out.suffix)
    if write is None:
        raise ValueError(f"{out}: end the name in {', '.join(_WRITERS)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    return write(iter(records), out)


def _as_json(record: Record, out: Path) -> dict[str, Any]:
    if not isinstance(record.image, Path):
        raise ValueError(f"{out}: an image has no path to name; only .tar holds the images")
    return record.to_json(Path(os.path.relpath(record.image, out.parent)).as_posix())


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".part")


def _write_jsonl(records: Iterator[Record], out: Path) -> int:
    count = 0
    with _partial(out).open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(_as_json(record, out), ensure_ascii=False) + "\n")
            count += 1
    _partial(out).replace(out)
    return count


def _write_parquet(records: Iterator[Record], out: Path) -> int:
    import pyarrow as pa
    from pyarrow import parquet

    text, count = pa.string(), 0
    truth = pa.struct([("size", pa.list_(pa.int64())), ("counts", text)])
    fields = [("image", text), ("instruction", text), ("answer", text)]
    schema = pa.schema([*fields, ("task", pa.list_(text)), ("id", text), ("truth_rle", truth)])
    with parquet.ParquetWriter(_partial(out), schema) as writer:
        while group := [_as_json(record, out) for record in islice(records, _ROW_GROUP)]:
            writer.write_table(pa.Table.from_pylist(group, schema))
            count += len(group)
    _partial(out).replace(out)
    return count


def _write_shards(records: Iterator[Record], out: Path) -> int:
    """Shards that no longer belong are removed: readers take every file that matches."""
    count = shard = 0
    while group := list(islice(records, SHARD_RECORDS)):
        _write_shard(group, _shard(out, shard))
        count, shard = count + len(group), shard + 1
    with suppress(FileNotFoundError):
        while True:
            _shard(out, shard).unlink()
            shard += 1
    return count


def _shard(out: Path, number: int) -> Path:
    return out.with_name(f"{out.stem}-{number:06d}{out.suffix}")


def _write_shard(records: Iterable[Record], path: Path) -> None:
    with tarfile.open(_partial(path), "w") as tar:
        for image, about in groupby(records, lambda record: record.image):
            suffix, content = image.suffix.lower(), image.read_bytes()
            for record in about:
                name = f"{record.id}{suffix}"
                _add(tar, name, content)
                values = json.dumps(record.to_json(name), ensure_ascii=False)
                _add(tar, f"{record.id}.json", values.encode())
    _partial(path).replace(path)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


_WRITERS: dict[str, Callable[[Iterator[Record], Path], int]] = {
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
    ".tar": _write_shards,
}
