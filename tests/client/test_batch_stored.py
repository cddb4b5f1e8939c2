"""Images in tar files and Parquet, here and in a store."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from simpleseg.batch import BatchError
from simpleseg.batch.source import read_source
from simpleseg.batch.stored import stored


def picture(number: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(content, "PNG")
    return content.getvalue()


@pytest.fixture(params=["local", "store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder's path, or the URL of one in a store."""
    if request.param == "local":
        yield str(tmp_path)
        return
    yield "memory://bucket"
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def write(url: str, content: bytes) -> None:
    with fsspec.open(url, "wb") as file:
        file.write(content)


def tar_of(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return content.getvalue()


def test_samples_of_tar_files_are_asked_about_in_order(place: str) -> None:
    asked = json.dumps({"prompts": ["the cat"], "caption": "not ours"}).encode()
    first = {"a.jpg": picture(1), "a.json": asked, "b.png": picture(2), "c.txt": b"no image"}
    write(f"{place}/x-0.tar", tar_of(first))
    write(f"{place}/x-1.tar", tar_of({"a.png": picture(3)}))
    source = read_source(f"{place}/x-*.tar", ["the dog"], None)
    entries = list(source.entries())
    assert [entry.custom_id for entry in entries] == ["x-0.tar/a", "x-0.tar/b", "x-1.tar/a"]
    assert [entry.fields["prompts"] for entry in entries] == [["the cat"], ["the dog"], ["the dog"]]
    assert [entry.path.read_bytes() for entry in entries if entry.path] == [
        picture(number) for number in (1, 2, 3)
    ]


@pytest.mark.parametrize("nested", [False, True], ids=["bytes", "bytes in a struct"])
def test_rows_of_parquet_are_asked_about(place: str, nested: bool) -> None:
    images: list[object] = [picture(number) for number in range(5)]
    if nested:
        images = [{"bytes": one, "path": "x.png"} for one in images]
    prompts = [["the cat"], None, None, None, ["a", "b"]]
    table = pa.table({"image": images, "id": [f"n{n}" for n in range(5)], "prompts": prompts})
    content = io.BytesIO()
    parquet.write_table(table, content, row_group_size=2)
    write(f"{place}/rows.parquet", content.getvalue())
    entries = list(read_source(f"{place}/rows.parquet", ["the dog"], 9).entries())
    assert [entry.custom_id for entry in entries] == [f"rows.parquet/n{n}" for n in range(5)]
    assert [entry.path.read_bytes() for entry in entries if entry.path] == [
        picture(number) for number in range(5)
    ]
    assert entries[0].fields == {"prompts": ["the cat"], "max_points": 9}
    assert entries[1].fields == {"prompts": ["the dog"], "max_points": 9}
    assert json.loads(entries[4].body())["image"].keys() == {"base64"}


def test_names_tell_files_of_several_folders_apart(place: str) -> None:
    for folder in "ab":
        write(f"{place}/{folder}/x.tar", tar_of({"1.png": picture(1)}))
    entries = read_source(f"{place}/*/x.tar", ["the dog"], None).entries()
    assert [entry.name for entry in entries] == ["a/x.tar/1", "b/x.tar/1"]


def test_suffixes_are_those_that_everybody_knows(place: str) -> None:
    image, phone, content = Image.new("RGB", (8, 8)), io.BytesIO(), io.BytesIO()
    image.save(phone, "MPO", save_all=True, append_images=[image])
    parquet.write_table(pa.table({"image": [phone.getvalue(), picture(1)]}), content)
    write(f"{place}/rows.parquet", content.getvalue())
    write(f"{place}/x.tar", tar_of({"a.JPG": picture(1), "b.bmp": picture(2)}))
    assert [one.image.suffix for one in stored(f"{place}/rows.parquet")] == [".jpeg", ".png"]
    assert [one.image.suffix for one in stored(f"{place}/x.tar")] == [".jpg"]
    assert [one.image.suffix for one in stored(f"{place}/x.tar", {".bmp"})] == [".bmp"]


@pytest.mark.parametrize("name", ["x.tar", "x.parquet"])
def test_other_files_are_refused_by_name(place: str, name: str) -> None:
    write(f"{place}/{name}", b"something else, long enough to be looked at" * 30)
    with pytest.raises(BatchError, match=rf"{name}: no (tar|Parquet) file"):
        read_source(f"{place}/{name}", ["the dog"], None)
    with pytest.raises(BatchError, match="there is no such file"):
        read_source(f"{place}/none-*{name[1:]}", ["the dog"], None)
