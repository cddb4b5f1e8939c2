"""Pickles that hold plain data, read without running what they say."""

import pickle
from pathlib import Path
from typing import Any


class UnsafePickle(ValueError):
    """The file asks for more than plain containers, numbers and text."""


class _PlainUnpickler(pickle.Unpickler):
    """A pickle runs code only through a global or a persistent id; both are refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise UnsafePickle(f"asks for {module}.{name}; only plain data is read")

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickle("asks for an object from outside; only plain data is read")


def load_plain(path: Path) -> Any:
    """The lists, tuples, dicts, numbers and text of a pickle, Python 2's included.

    Raises UnsafePickle for anything that would import or run code, ValueError for what is no
    pickle.
    """
    with path.open("rb") as file:
        try:
            return _PlainUnpickler(file, encoding="utf-8").load()
        except UnsafePickle as error:
            raise UnsafePickle(f"{path}: {error}") from None
        except Exception as error:  # a broken pickle raises whatever its opcodes run into
            raise ValueError(f"{path}: not a pickle of plain data") from error
