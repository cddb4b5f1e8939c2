"""`simpleseg doctor`: can this machine serve, and what to do where it cannot."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from simpleseg import doctor as checks
from simpleseg.cli_support import ConfigOption, Failure, load_settings, settings_errors
from simpleseg.doctor import Check

_MARKS = {"ok": "ok", "note": "note", "problem": "PROBLEM"}


def doctor(
    *,
    config: ConfigOption = None,
    url: Annotated[
        str | None, typer.Option(help="Look at the server there too, with SIMPLESEG_API_KEY.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    **options: Any,
) -> None:
    """Say what is installed, what `simpleseg serve` with the same options would do, and what to do
    where it would not start. Loads no model.

    The status is 0 if it can serve (and the server at --url answers), else 1.
    """
    found = list(_checks(config, options, url))
    can_serve = all(check.status != "problem" for check in found)
    if as_json:
        typer.echo(json.dumps({"can_serve": can_serve, "checks": [asdict(one) for one in found]}))
    else:
        typer.echo("\n".join([*map(_lines, found), _verdict(found)]))
    if not can_serve:
        raise typer.Exit(1)


def _checks(config: Path | None, options: dict[str, Any], url: str | None) -> Iterator[Check]:
    yield checks.versions()
    yield checks.extras()
    yield checks.gpu()
    from simpleseg_server.keys import KeyRing

    try:
        loaded = load_settings(config, options)
        with settings_errors():
            KeyRing(loaded.settings)
        yield checks.settings_in_effect(loaded)
    except Failure as error:
        yield Check("settings", "problem", str(error), "simpleseg serve --help lists them")
    else:
        yield checks.model(loaded.settings)
        yield checks.engine(loaded.settings)
        yield checks.ports(loaded.settings)
    if url is not None:
        yield checks.server(url)


def _lines(check: Check) -> str:
    """
    >>> print(_lines(Check("gpu", "note", "none", "buy one")))
    note     gpu       none
                       -> buy one
    """
    line = f"{_MARKS[check.status]:<8} {check.name:<9} {check.detail}"
    return line if check.fix is None else f"{line}\n{'':<18} -> {check.fix}"


def _verdict(found: list[Check]) -> str:
    problems = [check.name for check in found if check.status == "problem"]
    if not problems:
        return "This machine can serve: simpleseg serve"
    return f"Not yet: see {', '.join(problems)}."
