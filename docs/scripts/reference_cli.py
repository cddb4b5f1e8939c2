"""The reference of the command line, from the commands themselves."""

from collections.abc import Iterator
from typing import Any

import typer.main

from simpleseg.cli import app
from simpleseg_server.config import Settings


def command_line() -> str:
    """Every command; the settings that ``serve`` and ``doctor`` take are on a page of their own."""
    group: Any = typer.main.get_command(app)
    return "\n\n".join("\n".join(_command(name, one)) for name, one in commands_of(group))


def commands_of(group: Any) -> Iterator[tuple[str, Any]]:
    """Every command with its name; those of a group inside as "data refcoco"."""
    for name, one in group.commands.items():
        if hasattr(one, "commands"):
            yield from ((f"{name} {inner}", command) for inner, command in commands_of(one))
        else:
            yield name, one


def _command(name: str, command: Any) -> Iterator[str]:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    takes_all = {one.name for one in options} >= Settings.model_fields.keys()
    own = [one for one in options if not takes_all or one.name not in Settings.model_fields]
    usage = " ".join(_usage(one) for one in arguments)
    yield f"### `{' '.join(filter(None, ['simpleseg', name, usage]))}`\n"
    yield f"{command.help}\n".replace("\n    ", "\n")
    yield "| argument | meaning | default |\n|---|---|---|"
    for one in [*arguments, *own]:
        if one.name != "help":
            yield f"| {_names(one)} | {one.help or ''} | {_default(one)} |"
    if takes_all:
        yield "\nAnd every [setting](settings.md) of the server."


def _usage(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    name = name if argument.nargs == 1 else f"{name}..."
    return name if argument.required else f"[{name}]"


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_usage(parameter)}`"
    return ", ".join(f"`{name}`" for name in parameter.opts)


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    shown = parameter.show_default
    if isinstance(shown, str):
        return shown
    value = parameter.default
    return "-" if value in (None, False, ()) or callable(value) else f"`{value}`"
