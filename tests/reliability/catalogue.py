"""Which rows of the catalogue of faults (``catalogue.toml``) have a test.

A test proves the rows of its name, ``test_A7_png_bomb`` or ``test_D1_D2_addresses``, and those of
``@pytest.mark.catalogue("A7")``. ``pytest --catalogue`` prints the coverage; a row that there is
not is an error in every run. Tests that are expected to fail prove nothing.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

_NAME = re.compile(r"test_([A-K]\d+(?:_[A-K]\d+)*)(?=_|\[|$)")
_PATH = Path(__file__).with_name("catalogue.toml")


@dataclass(frozen=True)
class Section:
    """A letter, what its rows are about, and the title of each."""

    letter: str
    title: str
    rows: Mapping[str, str]


def sections(path: Path = _PATH) -> tuple[Section, ...]:
    """The catalogue, in order. Raises ValueError for a row of another section's letter."""
    read = tomllib.loads(path.read_text())
    return tuple(_section(letter, table) for letter, table in read.items())


def _section(letter: str, table: Mapping[str, str | Mapping[str, str]]) -> Section:
    rows = {name: row["title"] for name, row in table.items() if not isinstance(row, str)}
    if not all(re.fullmatch(rf"{letter}\d+", name) for name in rows):
        raise ValueError(f"a row of section {letter} has another letter")
    return Section(letter, str(table["title"]), rows)


def rows_of_name(name: str) -> tuple[str, ...]:
    """
    >>> rows_of_name("test_A7_A8_png_bomb[13000]"), rows_of_name("test_a_box")
    (('A7', 'A8'), ())
    """
    match = _NAME.match(name)
    return tuple(match[1].split("_")) if match else ()


def rows_of(item: pytest.Item) -> set[str]:
    """The rows that a test proves, by its name and its marks."""
    marked = [row for mark in item.iter_markers("catalogue") for row in mark.args]
    return {*rows_of_name(item.name), *marked}


def proven(items: Iterable[pytest.Item]) -> set[str]:
    """The rows that have a test. Raises UsageError for one that the catalogue has not."""
    known = {row for section in sections() for row in section.rows}
    found = set()
    for item in items:
        rows = rows_of(item)
        if rows - known:
            raise pytest.UsageError(f"{item.nodeid}: no such row: {', '.join(rows - known)}")
        if item.get_closest_marker("xfail") is None:
            found |= rows
    return found


def report(found: set[str]) -> Iterator[str]:
    """The coverage by section, then the rows without a test by name."""
    every = sections()
    total = sum(len(section.rows) for section in every)
    yield f"{len(found)} of {total} rows have a test"
    for section in every:
        covered = len(found & section.rows.keys())
        yield f"{section.letter}  {covered:3d} / {len(section.rows):<3d} {section.title}"
    for section in every:
        yield from (f"no test: {n:4s} {t}" for n, t in section.rows.items() if n not in found)
