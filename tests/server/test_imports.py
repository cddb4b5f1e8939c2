"""What is imported at start: without garbage collection."""

import gc

import pytest

from simpleseg_server.imports import without_collection


@without_collection()
def _failing_import() -> None:
    raise ImportError(str(gc.isenabled()))


def test_collection_pauses_and_goes_on_whatever_happens() -> None:
    with pytest.raises(ImportError, match="False"):
        _failing_import()
    assert gc.isenabled()


def test_it_stays_off_for_those_who_have_it_off() -> None:
    gc.disable()
    try:
        with without_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
