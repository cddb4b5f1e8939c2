"""The tree of errors, as it is drawn and as it is."""

import re

import simpleseg
from simpleseg import errors


def _tree(kind: type[Exception], depth: int = 0) -> list[tuple[int, str]]:
    """Every class below ``kind`` with its depth, as a drawing lists them."""
    found = [(depth, kind.__name__)]
    for child in kind.__subclasses__():
        found += _tree(child, depth + 1)
    return found


def test_the_drawing_is_the_tree() -> None:
    assert errors.__doc__ is not None
    drawn = re.findall(r"^([│├└─ ]*)(\w+)  ", errors.__doc__, re.MULTILINE)
    assert [(len(branch) // 4, name) for branch, name in drawn] == _tree(errors.SimpleSegError)


def test_every_error_is_exported() -> None:
    assert {name for _, name in _tree(errors.SimpleSegError)} <= set(simpleseg.__all__)
