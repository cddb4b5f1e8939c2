"""What the JSON Schema of a request says beyond its fields: which of them go together.

Each rule repeats, in the words of JSON Schema, a check of ``schema.py`` or ``chat_schema.py``, so
that what the documented schema lets through is refused for its values alone. A test sends requests
made from the schema, and from its negation, to a server.
"""

from typing import Any

Rule = dict[str, Any]
Rules = list[Any]

NULL: Rule = {"type": "null"}
_GIVEN: Rule = {"type": ["string", "object", "array", "number", "boolean"]}


def present(name: str) -> Rule:
    """The field is there and not null."""
    return {"required": [name], "properties": {name: _GIVEN}}


def absent(*names: str, nothing: Rule | bool = NULL) -> Rule:
    """The fields are missing or null; with ``nothing`` False, as in a form, missing."""
    return {"properties": dict.fromkeys(names, nothing)}


def exactly_one(*names: str, nothing: Rule | bool = NULL) -> Rule:
    """
    >>> exactly_one("a", "b", nothing=False)["anyOf"][1]["properties"]["a"]
    False
    """
    return {"anyOf": [_only(name, names, nothing) for name in names]}


def _only(name: str, names: tuple[str, ...], nothing: Rule | bool) -> Rule:
    others = dict.fromkeys(names, nothing) | {name: _GIVEN}
    return {"required": [name], "properties": others}


def at_least_one(*names: str) -> Rule:
    return {"anyOf": [present(name) for name in names]}


def at_most_one(*names: str) -> Rule:
    return {"anyOf": [absent(*(other for other in names if other != name)) for name in names]}


def segment_rules(nothing: Rule | bool = NULL) -> Rules:
    """Of ``POST /segment``; ``nothing`` as for ``absent``."""
    one_answer = {"samples": {"const": 1}}
    any_task = {
        **absent("return", "simplify", nothing=nothing)["properties"],
        **one_answer,
        "refine": {"const": False},
    }
    return [
        present("image"),
        exactly_one("prompt", "prompts", nothing=nothing),
        {"properties": {"prompts": {"minItems": 1}}},
        {"anyOf": [{"properties": {"task": {"const": "region"}}}, {"properties": any_task}]},
        {
            "anyOf": [
                {"properties": one_answer},
                {"properties": {"temperature": {"exclusiveMinimum": 0}}},
            ]
        },
    ]


IMAGE_TEXT: Rule = {"anyOf": [{"format": "uri"}, {"format": "byte"}]}
IMAGE_RULES: Rules = [exactly_one("base64", "url", "id")]
UPLOAD_RULES: Rules = [
    {"properties": {"image": {"anyOf": [{"type": "string"}, {"type": "object", **absent("id")}]}}}
]
PROMPT_RULES: Rules = [at_least_one("text", "point", "box", "polygons")]
_STREAMED: Rule = {"required": ["stream"], "properties": {"stream": {"const": True}}}
CHAT_RULES: Rules = [
    at_most_one("max_tokens", "max_completion_tokens"),
    at_most_one("response_format", "structured_outputs"),
    {"anyOf": [absent("stream_options"), _STREAMED]},
]
