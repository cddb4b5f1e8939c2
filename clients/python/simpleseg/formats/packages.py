"""Packages that only their own users have."""

from importlib import import_module
from types import ModuleType

from simpleseg.errors import MissingPackageError


def optional(name: str) -> ModuleType:
    """The package. Raises MissingPackageError that says how to install it; extras have its name."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        command = f"pip install 'simpleseg-server[{name}]'"
        raise MissingPackageError(f"{name} is not installed: {command}", name=name) from None
