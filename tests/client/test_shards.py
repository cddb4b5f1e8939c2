"""Shards: whole or not there, and of one thing asked."""

from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from simpleseg.shards import ForeignShardsError, Shards, cut


class Buckets(MemoryFileSystem):  # type: ignore[misc]
    """As in S3 folders are but parts of names: an empty one is not there."""

    protocol = "buckets"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """There is nothing to make."""


fsspec.register_implementation("buckets", Buckets, clobber=True)


@pytest.fixture(params=["here", "memory", "buckets"])
def shards(request: pytest.FixtureRequest, tmp_path: Path) -> Shards:
    """In a folder, and in what fsspec has like an object store."""
    here = request.param == "here"
    return Shards(str(tmp_path / "out") if here else f"{request.param}://{tmp_path}")


def test_a_block_is_missing_until_its_shard_is_written(shards: Shards) -> None:
    blocks = cut(["a", "b", "c"], str, 2)
    assert [block.items for block in blocks] == [["a", "b"], ["c"]]
    assert shards.missing(blocks) == blocks
    lines = [{"image": "é\u2028\n"}, {"image": "b"}]
    shards.write(blocks[0].name, lines)
    assert shards.missing(blocks) == blocks[1:]
    assert shards.read(blocks[0].name) == lines


def test_shards_of_something_else_are_refused(shards: Shards) -> None:
    first, second = (cut(["a", "b"], asked.__add__, 1) for asked in "xy")
    shards.write(first[0].name, [])
    with pytest.raises(ForeignShardsError, match="name another output"):
        shards.missing(second)
    with pytest.raises(ForeignShardsError, match="part-000000"):
        shards.missing(cut(["a", "b"], "x".__add__, 2))


def test_what_a_killed_writer_left_is_no_shard_and_goes(tmp_path: Path) -> None:
    blocks, shards = cut(["a"], str, 1), Shards(str(tmp_path))
    (tmp_path / f".{blocks[0].name}.0123").write_text("{")
    (tmp_path / "notes").touch()
    assert shards.missing(blocks) == blocks
    shards.tidy()
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_files_of_a_folder_are_copied_and_removed(shards: Shards, tmp_path: Path) -> None:
    (tmp_path / "made").write_bytes(b"first")
    shards.copy(tmp_path / "made")
    (tmp_path / "made").write_bytes(b"second")
    shards.copy(tmp_path / "made")
    assert shards.read_bytes("made") == b"second"
    assert shards.names("*") == {"made"}
    shards.remove("made")
    shards.remove("made")
    assert not shards.names("*")
