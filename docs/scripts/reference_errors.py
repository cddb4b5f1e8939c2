"""The tree of the client's errors, as the module that defines them draws it."""

from simpleseg import errors as module


def errors() -> str:
    drawn = (module.__doc__ or "").partition("\n\n")[2].rstrip()
    return f"```text\n{drawn}\n```"
