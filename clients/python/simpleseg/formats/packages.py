"""Packages that only their own users have."""

from importlib import import_module
from types import ModuleType

from simpleseg.errors import MissingPackageError


def optional(name: str, extra: str | None = None) -> ModuleType:
    """A module of such a package.

    Raises MissingPackageError that says how to install it: by ``extra``, or by its own name.
    """
    package = name.partition(".")[0]
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        command = f"pip install 'simpleseg-server[{extra or package}]'"
        message = f"{package} is not installed: {command}"
        raise MissingPackageError(message, name=package) from None
