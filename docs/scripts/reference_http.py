"""The HTTP reference, from the OpenAPI document of a server with default settings."""

import html
import re
from collections.abc import Iterator
from typing import Any

from simpleseg_server.app import create_app
from simpleseg_server.config import Settings
from simpleseg_server.engines.scripted import ScriptedEngine

Schema = dict[str, Any]
_REF = "#/components/schemas/"


def document() -> dict[str, Any]:
    return create_app(Settings(), ScriptedEngine(["[]"])).openapi()


def http_api() -> str:
    """Every route, then every shape that they take or give."""
    openapi = document()
    routes = [
        "\n".join(_route(path, method, operation))
        for path, operations in openapi["paths"].items()
        for method, operation in operations.items()
    ]
    shapes = [
        "\n".join(_shape(name, schema))
        for name, schema in sorted(openapi["components"]["schemas"].items())
    ]
    return "\n\n".join(["## Routes", *routes, "## Shapes", *shapes])


def _route(path: str, method: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"### `{method.upper()} {path}`\n"
    yield f"{operation['summary']}.\n"
    if operation.get("description"):
        yield _prose(operation["description"]) + "\n"
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"- Takes `{kind}`: {_taken(content['schema'])}"
    statuses: dict[str, list[str]] = {}
    for status, response in sorted(operation["responses"].items()):
        kinds = {kind: _type(one.get("schema", {})) for kind, one in _contents(response)}
        told = ", ".join(f"{shape} as `{kind}`" for kind, shape in kinds.items())
        statuses.setdefault(told or _one_line(response["description"]), []).append(status)
    for told, numbers in statuses.items():
        yield f"- Gives {', '.join(numbers)}: {told}"


def _contents(response: dict[str, Any]) -> list[tuple[str, Any]]:
    return list(response.get("content", {}).items())


def _taken(schema: Schema) -> str:
    if "$ref" in schema:
        return _type(schema)
    return "the fields " + ", ".join(f"`{name}`" for name in schema.get("properties", {}))


def _shape(name: str, schema: Schema) -> Iterator[str]:
    yield f"### {name}\n"
    if schema.get("description"):
        yield _prose(schema["description"]) + "\n"
    properties = schema.get("properties", {})
    if not properties:
        return
    yield "| field | type | default | meaning |\n|---|---|---|---|"
    for field, one in properties.items():
        needed = field in schema.get("required", ())
        yield f"| `{field}` | {_type(one)} | {_default(one, needed)} | {_meaning(one)} |"


def _default(schema: Schema, needed: bool) -> str:
    if needed:
        return "required"
    value = schema.get("default")
    return "-" if value is None else f"`{_json(value)}`"


def _json(value: Any) -> str:
    return str(value).replace("'", '"').replace("True", "true").replace("False", "false")


def _meaning(schema: Schema) -> str:
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "maxItems": "at most"}
    inner = next((one for one in schema.get("anyOf", ()) if one.get("type") != "null"), schema)
    limits = [f"{word} {inner[key]}" for key, word in bounds.items() if key in inner]
    return " ".join([_one_line(schema.get("description", "")), *limits]).strip()


def _type(schema: Schema) -> str:
    """
    >>> _type({"anyOf": [{"items": {"$ref": "#/components/schemas/Rle"}, "type": "array"},
    ...                  {"type": "null"}]})
    'list of [Rle](#rle)'
    """
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_REF)
        return f"[{name}](#{name.lower()})"
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        words = [_type(one) for one in choices if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(words))
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if values:
        return ", ".join(f"`{value}`" for value in values)
    if schema.get("type") == "array" and "items" in schema:
        return f"list of {_type(schema['items'])}"
    return str(schema.get("format") or schema.get("type", "anything"))


def _prose(text: str) -> str:
    """A docstring as Markdown, without its examples for Python."""
    return html.escape(re.sub(r"``(.+?)``", r"`\1`", text.partition(">>>")[0]), quote=False).strip()


def _one_line(text: str) -> str:
    return " ".join(_prose(text).split()).replace("|", "\\|")
