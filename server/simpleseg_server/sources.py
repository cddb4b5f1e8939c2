"""Where settings come from: options of the command line, variables, a TOML file, the defaults.

An option comes before a variable, a variable before the file, the file before the default. All of
them have the same names: ``--max-prompts``, ``SIMPLESEG_MAX_PROMPTS``, ``max_prompts = 8``.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from simpleseg_server.config import ConfigError, Settings

ENV_PREFIX = "SIMPLESEG_"
FILE_VARIABLE = "SIMPLESEG_CONFIG"
KEY_VARIABLES = ("SIMPLESEG_API_KEYS", "SIMPLESEG_API_KEY")
"""Both add to ``api_keys``; the second is also what the client library sends."""
SECRET_VARIABLES = (
    *KEY_VARIABLES,
    "SIMPLESEG_UPSTREAM_API_KEY",
    "SIMPLESEG_LABEL_STUDIO_TOKEN",
)
_OTHER_VARIABLES = frozenset({"SIMPLESEG_BASE_URL", FILE_VARIABLE, *KEY_VARIABLES})
_MASK = "**********"


@dataclass(frozen=True)
class Given:
    """A value that somebody gave a setting; ``origin`` says where, and never what."""

    name: str
    value: Any
    origin: str


@dataclass(frozen=True)
class Loaded:
    """Settings, and for each that is not at its default, who gave it."""

    settings: Settings
    origins: Mapping[str, str]

    def render(self) -> str:
        """The effective settings as a TOML file, with the origin of each and secrets masked."""
        return "\n".join(map(self._line, Settings.model_fields))

    def _line(self, name: str) -> str:
        value = getattr(self.settings, name)
        line = f"# {name} =" if value is None else f"{name} = {_toml(value)}"
        origin = self.origins.get(name)
        return line if origin is None else f"{line}  # {origin}"


def load(
    environ: Mapping[str, str], file: Path | None = None, options: Mapping[str, Any] | None = None
) -> Loaded:
    """Settings from ``options`` that are not None, variables, ``file`` (or the file that
    SIMPLESEG_CONFIG names) and the defaults, in this order of precedence.

    Raises ConfigError that names each setting which is unknown or out of range and who gave it.

    >>> load({"SIMPLESEG_MAX_PROMPTS": "3"}, options={"port": "9000"}).settings.max_prompts
    3
    """
    if file is None and environ.get(FILE_VARIABLE):
        file = Path(environ[FILE_VARIABLE])
    given = [*_from_file(file), *_from_environ(environ), *_from_options(options or {})]
    unknown = [_unknown(one) for one in given if one.name not in Settings.model_fields]
    if unknown:
        raise ConfigError("; ".join(unknown))
    origins = {one.name: one.origin for one in given}
    try:
        settings = Settings.model_validate({one.name: one.value for one in given})
    except ValidationError as error:
        raise ConfigError(_describe(error, origins)) from None
    return Loaded(settings, origins)


def forget_secrets(environ: MutableMapping[str, str]) -> None:
    """Drop the variables that hold secrets, once they are read: no child needs them."""
    for name in SECRET_VARIABLES:
        environ.pop(name, None)


def _from_options(options: Mapping[str, Any]) -> Iterator[Given]:
    for name, value in options.items():
        if value is not None:
            yield Given(name, value, f"--{option_name(name)}")


def option_name(name: str) -> str:
    """The setting as an option without its dashes; lists are named by one item, and repeated.

    >>> option_name("max_prompts"), option_name("api_keys")
    ('max-prompts', 'api-key')
    """
    singular = {"api_keys": "api_key", "open_paths": "open_path", "upstreams": "upstream"}
    return singular.get(name, name).replace("_", "-")


def _from_environ(environ: Mapping[str, str]) -> Iterator[Given]:
    for variable, value in environ.items():
        if variable.startswith(ENV_PREFIX) and variable not in _OTHER_VARIABLES:
            yield Given(variable.removeprefix(ENV_PREFIX).lower(), value, variable)
    named = [variable for variable in KEY_VARIABLES if variable in environ]
    if named:
        yield Given("api_keys", ",".join(environ[name] for name in named), " and ".join(named))


def _from_file(file: Path | None) -> Iterator[Given]:
    if file is None:
        return
    text = read_text(file)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: {error}") from None
    for name, value in values.items():
        yield Given(name, value, f"{file}{_line_of(name, text)}")


def read_text(file: Path) -> str:
    """Raises ConfigError where there is no readable text."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: not UTF-8") from None


def _line_of(name: str, text: str) -> str:
    """``:LINE`` of a top-level key or table, or nothing where it is written in another way.

    >>> _line_of("port", 'host = "::1"\\nport = 1')
    ':2'
    """
    pattern = re.compile(rf"\s*\[*\s*[\"']?{re.escape(name)}[\"']?\s*[=.\]]")
    lines = (i for i, line in enumerate(text.splitlines(), 1) if pattern.match(line))
    return "".join(f":{line}" for line in list(lines)[:1])


def _unknown(given: Given) -> str:
    """
    >>> _unknown(Given("max_promts", 3, "SIMPLESEG_MAX_PROMTS"))
    'SIMPLESEG_MAX_PROMTS: unknown setting: max_promts (did you mean max_prompts?)'
    """
    near = difflib.get_close_matches(given.name, Settings.model_fields, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"{given.origin}: unknown setting: {given.name}{hint}"


def _describe(error: ValidationError, origins: Mapping[str, str]) -> str:
    """The settings at fault and what is wrong with them, without the values."""
    parts = []
    for fault in error.errors(include_input=False, include_url=False, include_context=False):
        name = str(fault["loc"][0]) if fault["loc"] else ""
        parts.append(": ".join(filter(None, (origins.get(name), name, fault["msg"]))))
    return "; ".join(parts)


def _toml(value: Any) -> str:
    """
    >>> _toml((SecretStr("a"),)), _toml(True), _toml(Path("/x"))
    ('["**********"]', 'true', '"/x"')
    """
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, SecretStr):
        return json.dumps(_MASK)
    return json.dumps(str(value) if isinstance(value, Path) else value)
