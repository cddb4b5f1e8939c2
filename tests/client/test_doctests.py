"""The examples in the docstrings of the SDK, run; those that ask a server ask a real one."""

import doctest
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import simpleseg
from simpleseg_server.engines.scripted import ScriptedEngine

from .serving import TRIANGLE, serving

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(simpleseg.__path__, f"{simpleseg.__name__}.")
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(ScriptedEngine([TRIANGLE])) as url:
        yield url


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMPLESEG_BASE_URL", url)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (80, 80)).save("street.jpg")
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.failed == 0


def test_both_clients_have_examples() -> None:
    for client in (simpleseg.SimpleSeg, simpleseg.AsyncSimpleSeg):
        finder = doctest.DocTestFinder(exclude_empty=True)
        assert any(test.examples for test in finder.find(client))
