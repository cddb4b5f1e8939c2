"""Imports at start, which are most of it."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Pause garbage collection: the thousands of modules of torch and vLLM leave next to none, and
    a quarter of their import is the search for it. Nothing happens where it is off already."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
