"""The settings as options of ``simpleseg serve`` and as the table in ``docs/settings.md``.

``python -m simpleseg_server.options`` prints the table.
"""

import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any

import typer
from pydantic_core import PydanticUndefined

from simpleseg_server.config import KIB, MIB, Settings
from simpleseg_server.sources import ENV_PREFIX, option_name

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Listeners": ("host", "port", "ops_host", "ops_port", "shutdown_timeout_s", "playground"),
    "Access": (
        "api_keys",
        "api_keys_file",
        "open_paths",
        "requests_per_minute",
        "max_concurrent_requests",
    ),
    "Logs and traces": ("log_format", "log_level", "otlp_endpoint", "trace_sample_ratio"),
    "Model": (
        "engine",
        "model",
        "max_batch",
        "draft",
        "supervise",
        "spare",
        "engine_stall_timeout_s",
        "dtype",
        "quantization",
        "tensor_parallel_size",
        "max_model_len",
        "gpu_memory_utilization",
        "max_model_pixels",
        "lora",
        "trust_remote_code",
    ),
    "Upstreams": (
        "upstreams",
        "upstream_model",
        "upstream_api_key",
        "dialect",
        "upstream_image_format",
        "upstream_logprobs",
        "upstream_first_token_timeout_s",
        "upstream_idle_timeout_s",
        "upstream_hedge_after_s",
    ),
    "Images by URL": (
        "image_urls",
        "image_url_hosts",
        "image_url_timeout_s",
        "image_url_connect_timeout_s",
        "max_image_url_redirects",
        "max_fetches",
        "max_fetches_per_host",
    ),
    "Other tools": ("enable", "label_studio_url", "label_studio_token"),
}
OTHERS = "Limits"
"""The group of every setting that ``GROUPS`` does not name."""

_UNITS = {"bytes": "BYTES", "s": "SECONDS", "px": "PIXELS", "pixels": "PIXELS"}
_TYPES = {"integer": "INTEGER", "number": "NUMBER", "string": "TEXT", "boolean": "BOOLEAN"}
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<="}


def parameters() -> Iterator[inspect.Parameter]:
    """An option for every setting, as typer reads them from a function's signature.

    Values stay strings: the model converts and checks those of all sources alike.
    """
    for name in _ordered():
        kind = _schema(name).get("type", "")
        kinds: dict[str, Any] = {"boolean": bool | None, "array": list[str] | None}
        value = kinds.get(kind, str | None)
        option = typer.Option(
            *_declarations(name, kind),
            help=_description(name),
            metavar=None if kind == "boolean" else value_name(name),
            show_default=default_text(name) or False,
            rich_help_panel=group_of(name),
        )
        yield inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[value, option],
        )


def _ordered() -> list[str]:
    """The settings by group, the unnamed ones last."""
    named = [name for names in GROUPS.values() for name in names]
    return named + [name for name in Settings.model_fields if name not in named]


def group_of(name: str) -> str:
    return next((group for group, names in GROUPS.items() if name in names), OTHERS)


def _declarations(name: str, kind: str) -> list[str]:
    option = option_name(name)
    return [f"--{option}/--no-{option}" if kind == "boolean" else f"--{option}"]


@cache
def _properties() -> dict[str, dict[str, Any]]:
    properties: dict[str, dict[str, Any]] = Settings.model_json_schema()["properties"]
    return properties


def _schema(name: str) -> dict[str, Any]:
    """The JSON schema of a setting's value, None left out."""
    schema = _properties()[name]
    choices: list[dict[str, Any]] = schema.get("anyOf", [schema])
    return next(one for one in choices if one.get("type") != "null")


def _description(name: str) -> str:
    """Its docstring as one paragraph."""
    return " ".join((Settings.model_fields[name].description or "").split())


def value_name(name: str) -> str:
    """What a setting takes: a unit, a type or the choices, with its range.

    >>> value_name("max_body_bytes"), value_name("log_format"), value_name("ops_port")
    ('BYTES >= 1', 'auto|json|text', 'INTEGER >= 0 <= 65535')
    """
    schema = _schema(name)
    if "enum" in schema:
        return "|".join(schema["enum"])
    if schema.get("type") == "array":
        return f"{'|'.join(schema['items'].get('enum', ['TEXT']))}, repeated"
    if schema.get("format") == "path":
        return "FILE"
    word = _UNITS.get(name.rpartition("_")[2]) or _TYPES[schema["type"]]
    bounds = [f"{sign} {schema[key]:g}" for key, sign in _BOUNDS.items() if key in schema]
    return " ".join([word, *bounds])


def default_text(name: str) -> str:
    """The default as people write it; "" where there is none.

    >>> default_text("max_image_bytes"), default_text("model"), default_text("draft")
    ('25165824 (24 MiB)', '', 'true')
    """
    value = Settings.model_fields[name].default
    if value is PydanticUndefined or value in (None, ()):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if name.endswith("_bytes") and value % MIB == 0:
        return f"{value} ({value // MIB} MiB)"
    if name.endswith("_bytes") and value % KIB == 0 and value > 100 * KIB:
        return f"{value} ({value // KIB} KiB)"
    return str(value)


def table() -> str:
    """The settings in Markdown, a table for each group."""
    sections = [_section(group) for group in (*GROUPS, OTHERS)]
    return "\n\n".join([_INTRODUCTION, *sections]) + "\n"


def _section(group: str) -> str:
    rows = [_row(name) for name in _ordered() if group_of(name) == group]
    head = ["| setting | value | default | meaning |", "|---|---|---|---|"]
    return "\n".join([f"## {group}", "", *head, *rows])


def _row(name: str) -> str:
    default = f"`{default_text(name)}`" if default_text(name) else "-"
    value = value_name(name).replace("|", ", ").replace(">=", "≥").replace("<=", "≤")
    return f"| `{name}` | {value} | {default} | {_description(name)} |"


_INTRODUCTION = f"""# Settings

Made by `python -m simpleseg_server.options`; a test compares.

Every setting can be given as an option of `simpleseg serve` (`--max-prompts 8`), as a variable
(`{ENV_PREFIX}MAX_PROMPTS=8`) and in a TOML file (`max_prompts = 8`) that `--config FILE` or
`{ENV_PREFIX}CONFIG` names. An option comes before a variable, a variable before the file, the file
before the default. Lists are repeated options (`--api-key A --api-key B`), comma-separated
variables (`{ENV_PREFIX}API_KEYS=A,B`; `{ENV_PREFIX}API_KEY` adds one key) and TOML lists. An
unknown setting is an error that names it. `simpleseg serve --check-config` prints what is in
effect, where each value comes from, and stops: status 0, or 2 where something is wrong."""


if __name__ == "__main__":
    print(table(), end="")
