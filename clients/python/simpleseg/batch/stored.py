"""Images inside larger files, here or in an object store: WebDataset's tar files, and Parquet.

URLs are fsspec's (``s3://bucket/shard-*.tar``), which says what to install for a scheme. Listing
reads the headers of a tar file, and of Parquet all columns but the images; an image is read when
its turn comes.
"""

import json
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from io import BytesIO
from itertools import groupby
from typing import Any, cast

from PIL import Image

from simpleseg.batch import BatchError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif"})
SUFFIXES = (".tar", ".parquet")
IMAGE_COLUMN, ID_COLUMNS = "image", ("custom_id", "id", "__key__")


@dataclass(frozen=True)
class Member:
    """A file within a tar file that is not compressed."""

    url: str
    offset: int
    length: int
    suffix: str

    def read_bytes(self) -> bytes:
        """Raises OSError."""
        with _fsspec().open(self.url, "rb") as file:
            file.seek(self.offset)
            content: bytes = file.read(self.length)
        return content


@dataclass(frozen=True)
class Cell:
    """The image of a row, the ``row``-th of a row group."""

    url: str
    group: int
    row: int

    def read_bytes(self) -> bytes:
        """Raises OSError where the cell holds no image's bytes."""
        cell = _images(self.url, self.group)[self.row].as_py()
        is_struct = isinstance(cell, dict)  # as data sets of Hugging Face have it
        content: Any = cast("dict[str, Any]", cell).get("bytes") if is_struct else cell
        if not isinstance(content, bytes):
            raise OSError(0, "no image in the row", self.url)
        return content

    @property
    def suffix(self) -> str:
        """That of the bytes' format, since a row has no file's name. Raises OSError for none."""
        with Image.open(BytesIO(self.read_bytes())) as image:
            # What phones write is MPO to Pillow, and a JPEG to everybody else.
            return ".jpeg" if image.format == "MPO" else f".{image.format}".lower()


@dataclass(frozen=True)
class Stored:
    """An image with what stands beside it: fields of a request, and its name, which begins with
    that of its file."""

    name: str
    image: Member | Cell
    fields: dict[str, Any]


def _fsspec() -> Any:
    """The package, whose types a strict check cannot use; it comes with the extra ray."""
    return import_module("fsspec")


def is_stored(source: str) -> bool:
    return source.endswith(SUFFIXES)


def stored(source: str, suffixes: Collection[str] = IMAGE_SUFFIXES) -> Iterator[Stored]:
    """What the files at a URL, a path or a pattern of either hold, in their order. In tar files,
    images are known by ``suffixes``.

    Raises BatchError where there are none, or one is not what its name says, and OSError.
    """
    filesystem, path = _fsspec().core.url_to_fs(source)
    found = sorted(filesystem.glob(path)) if "*" in path else [path]
    if not found:
        raise BatchError(f"{source}: there is no such file")
    for one in found:
        url = filesystem.unstrip_protocol(one)
        inside = _in_parquet(url) if source.endswith(".parquet") else _in_tar(url, suffixes)
        file = one.removeprefix(_folder_of(path))
        yield from (replace(image, name=f"{file}/{image.name}") for image in inside)


def _folder_of(pattern: str) -> str:
    """The folder of all that match."""
    return pattern.partition("*")[0].rpartition("/")[0] + "/"


def _in_tar(url: str, suffixes: Collection[str]) -> Iterator[Stored]:
    """Members whose names are alike up to the first dot are one sample, as WebDataset has it."""
    try:
        with _fsspec().open(url, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            members = (member for member in tar if member.isfile())
            for key, group in groupby(members, lambda member: _key(member.name)):
                sample = _sample(url, key, tar, list(group), suffixes)
                if sample is not None:
                    yield sample
    except tarfile.TarError as error:
        raise BatchError(f"{url}: no tar file: {error}") from None


def _key(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _sample(
    url: str,
    key: str,
    tar: tarfile.TarFile,
    members: list[tarfile.TarInfo],
    suffixes: Collection[str],
) -> Stored | None:
    image, fields = None, {}
    for member in members:
        suffix = "." + member.name.rpartition(".")[2].lower()
        if suffix in suffixes:
            image = Member(url, member.offset_data, member.size, suffix)
        elif member.name == f"{key}.json":
            file = tar.extractfile(member)
            assert file is not None  # it is a file
            fields = _asked(file.read(), f"{url}: {member.name}")
    return None if image is None else Stored(key, image, fields)


def _asked(content: bytes, where: str) -> dict[str, Any]:
    """What a sample's JSON asks: other data's keys, such as a caption, are no fields of ours."""
    try:
        value = json.loads(content)
    except ValueError:
        raise BatchError(f"{where} is not JSON") from None
    found = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    return {name: found[name] for name in ("prompt", "prompts") if name in found}


def _in_parquet(url: str) -> Iterator[Stored]:
    with _opened(url) as file:
        names = file.schema_arrow.names
        if IMAGE_COLUMN not in names:
            raise BatchError(f"{url}: there is no column {IMAGE_COLUMN!r}")
        id_column = next((name for name in ID_COLUMNS if name in names), None)
        asking = [name for name in ("prompt", "prompts") if name in names]
        wanted = [*asking, *([id_column] if id_column else [])]
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            table = file.read_row_group(group, columns=wanted)
            rows = table.to_pylist() if wanted else [{}] * count
            for number, row in enumerate(rows):
                name = row.get(id_column) if id_column else f"{group}-{number}"
                asked = {key: row[key] for key in asking if row[key]}
                yield Stored(str(name), Cell(url, group, number), asked)


@lru_cache(maxsize=2)
def _images(url: str, group: int) -> Any:
    """A row group's images; the rows of a group come one after the other."""
    with _opened(url) as file:
        return file.read_row_group(group, columns=[IMAGE_COLUMN]).column(0)


def _opened(url: str) -> Any:
    """Raises BatchError where it is no Parquet file."""
    parquet: Any = import_module("pyarrow.parquet")
    pyarrow: Any = import_module("pyarrow")
    try:
        return parquet.ParquetFile(_fsspec().open(url, "rb").open())
    except pyarrow.ArrowInvalid:
        raise BatchError(f"{url}: no Parquet file") from None
