"""The changelog's newest version is the package's."""

import re
from pathlib import Path

import simpleseg

CHANGELOG = Path(__file__).parents[2] / "CHANGELOG.md"


def test_the_changelog_names_this_version_first() -> None:
    versions = re.findall(r"^## \[([^\]]+)\]", CHANGELOG.read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == simpleseg.__version__


def test_every_exported_name_exists() -> None:
    assert sorted(simpleseg.__all__) == simpleseg.__all__
    assert all(hasattr(simpleseg, name) for name in simpleseg.__all__)
