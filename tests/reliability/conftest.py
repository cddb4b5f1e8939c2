"""``canary``: a server beside which a test does its harm, unharmed afterwards; ``make_canary``: the
same with settings of its own."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from .canary import Canary, started, unharmed

MakeCanary = Callable[..., AbstractContextManager[Canary]]


@pytest.fixture(scope="session")
def canary_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canary]:
    """One server for all tests that leave its settings as they are."""
    with started(tmp_path_factory.mktemp("canary")) as canary:
        yield canary


@pytest.fixture
def canary(canary_server: Canary) -> Iterator[Canary]:
    with unharmed(canary_server):
        yield canary_server


@pytest.fixture
def make_canary(tmp_path: Path) -> MakeCanary:
    """Context manager: a server with these settings, strings as variables hold them."""

    @contextmanager
    def make(**settings: str) -> Iterator[Canary]:
        with started(tmp_path, **settings) as canary, unharmed(canary):
            yield canary

    return make
