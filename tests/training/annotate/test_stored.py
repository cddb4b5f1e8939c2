"""Photographs inside tar files and Parquet become the pairs that they become in a folder."""

import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from typer.testing import CliRunner

from simpleseg.cli import app
from simpleseg.cli_support import Failure

PARTS = """
import numpy as np
from simpleseg_polygon.geometry import Box
from simpleseg_training.annotate.parts import Detection

done = []

class Part:
    def detect(self, image):
        done.append(image.shape)
        return [Detection("square", 0.8, Box(0.25, 0.25, 0.75, 0.75))]

    def segment(self, image, boxes):
        height, width = image.shape[:2]
        mask = np.zeros((height, width), bool)
        mask[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = True
        return [mask for _ in boxes]

def detector(labels):
    return Part()
"""
NAMES = ("0.png", "1.jpg", "2.bmp", "3.webp", "4.jpg")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With the same pictures three times: in a folder, in two tar files, and in Parquet."""
    (tmp_path / "photos").mkdir()
    for number, name in enumerate(NAMES):
        noise = np.random.default_rng(number).integers(0, 255, (40, 60, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / name)
    files = {name: (tmp_path / "photos" / name).read_bytes() for name in NAMES}
    write_tar(tmp_path / "x-0.tar", {"0.txt": b"a caption", **dict(list(files.items())[:3])})
    write_tar(tmp_path / "x-1.tar", dict(list(files.items())[3:]))
    cells = pa.table({"image": list(files.values())})
    parquet.write_table(cells, tmp_path / "x.parquet", row_group_size=2)
    (tmp_path / "stored_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def annotate(source: Path | str, out: Path | str, *options: str) -> dict[str, Any]:
    command = ["annotate", str(source), "-o", str(out), "--labels", "square", *options]
    command += ["--detector", "python:stored_parts.detector"]
    command += ["--segmenter", "python:stored_parts.Part"]
    run = CliRunner().invoke(app, command, catch_exceptions=False)
    counts: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return counts


def pairs(out: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Of each, the image's bytes and the rest."""
    with tarfile.open(out / "pairs-000000.tar") as tar:
        files = {name: content_of(tar, name) for name in tar.getnames()}
    records = [json.loads(files[name]) for name in files if name.endswith(".json")]
    return [(files[record.pop("image")], record) for record in records]


def content_of(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None
    return file.read()


@pytest.mark.parametrize("source", ["x-*.tar", "x.parquet"])
def test_pairs_are_those_of_a_folder(folder: Path, source: str) -> None:
    counts = annotate(folder / "photos", folder / "whole", "--form", "tar")
    assert annotate(folder / source, folder / "out") == counts
    assert counts["objects"] == counts["images"] == len(NAMES)
    assert pairs(folder / "out") == pairs(folder / "whole")
    assert len(pairs(folder / "out")) == counts["pairs"] > len(NAMES)


@pytest.mark.parametrize(
    ("source", "suffixes"),
    [("x-*.tar", {"png", "jpg", "bmp", "webp"}), ("x.parquet", {"png", "jpeg", "bmp", "webp"})],
)
def test_images_in_shards_have_their_suffixes(
    folder: Path, source: str, suffixes: set[str]
) -> None:
    annotate(folder / source, folder / "out")
    with tarfile.open(folder / "out/pairs-000000.tar") as tar:
        assert {name.rpartition(".")[2] for name in tar.getnames()} == {*suffixes, "json"}


def test_a_stopped_run_goes_on_and_names_tell_files_apart(folder: Path) -> None:
    (folder / "more").mkdir()
    (folder / "x-0.tar").rename(folder / "more/x.tar")
    write_tar(folder / "x.tar", {"0.png": (folder / "photos/0.png").read_bytes(), "1.jpg": b"no"})
    counts = annotate(folder / "**/x.tar", folder / "out")
    assert (counts["images"], counts["copied_images"], counts["unreadable_images"]) == (5, 1, 1)
    journal = folder / "out/journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    names = [json.loads(line)["image"] for line in lines[1:]]
    assert names == ["more/x.tar/0", "more/x.tar/1", "more/x.tar/2", "x.tar/0", "x.tar/1"]
    before = pairs(folder / "out")
    journal.write_text("".join(lines[:3]))
    sys.modules["stored_parts"].done.clear()
    assert annotate(folder / "**/x.tar", folder / "out") == counts
    assert len(sys.modules["stored_parts"].done) == 2
    assert pairs(folder / "out") == before


def test_images_are_read_from_a_store(folder: Path) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(folder / "x-0.tar"), "/bucket/x-0.tar")
    try:
        assert annotate("memory://bucket/x-*.tar", folder / "out")["objects"] == 3
    finally:
        store.rm("/bucket", recursive=True)


def test_rows_without_an_image_are_unreadable(folder: Path) -> None:
    cells = pa.table({"image": [None, b"", b"no picture"], "id": ["a", "b", "c"]})
    parquet.write_table(cells, folder / "none.parquet")
    counts = annotate(folder / "none.parquet", folder / "out")
    assert (counts["images"], counts["unreadable_images"], counts["pairs"]) == (3, 3, 0)


@pytest.mark.parametrize(
    ("source", "out", "options", "words"),
    [
        ("x-0.tar", "out", ("--form", "jsonl"), "--form jsonl: such pairs name images by"),
        ("x.parquet", "out", ("--form", "parquet"), "here only --form tar"),
        ("photos", "memory://out", ("--ray", "--form", "parquet"), "here only --form tar"),
        ("photos", "memory://out", (), "without --ray the output is a folder here"),
        ("none-*.tar", "out", (), "there is no such file"),
        ("twice.parquet", "out", (), r"2 pictures of the name 'twice.parquet/a'"),
        ("empty.tar", "out", (), "no pictures in"),
        ("broken.tar", "out", (), "no tar file"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is(
    folder: Path, source: str, out: str, options: tuple[str, ...], words: str
) -> None:
    parquet.write_table(pa.table({"image": [b"", b""], "id": ["a", "a"]}), folder / "twice.parquet")
    write_tar(folder / "empty.tar", {"0.txt": b""})
    (folder / "broken.tar").write_bytes(b"something else" * 100)
    place = out if "://" in out else folder / out
    with pytest.raises(Failure, match=words):
        annotate(folder / source, place, *options)
    assert not (folder / "out").exists()


def test_a_url_names_files(folder: Path) -> None:
    with pytest.raises(Failure, match=r"what is read from a URL ends in \.tar or \.parquet"):
        annotate("memory://photos", folder / "out")
