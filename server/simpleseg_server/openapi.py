"""The OpenAPI document: what the framework does not see.

The routes read their bodies themselves, so their schemas are added here; so are the limits of this
server, how keys are given, the form of ``POST /segment`` and examples of requests and refusals. A
test sends requests made from the document to a server, and every example.
"""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from simpleseg.chat_answer_schema import ChatChunk
from simpleseg.chat_schema import ChatRequest
from simpleseg.schema import (
    BatchRequest,
    RequestModel,
    SegmentRequest,
    StreamEvent,
    TokenizeRequest,
    UploadRequest,
)
from simpleseg.schema_rules import segment_rules
from simpleseg_server.auth import document_keys
from simpleseg_server.config import Settings
from simpleseg_server.openapi_examples import REFUSALS, REQUESTS

Schema = dict[str, Any]

_REQUESTS = (SegmentRequest, ChatRequest, UploadRequest, BatchRequest, TokenizeRequest)
_REFERENCE = "#/components/schemas/{model}"
_FILE: Schema = {
    "type": "string",
    "format": "binary",
    "description": "The file, or the http(s) URL of one.",
}
_UPLOAD_FORM: Schema = {
    "type": "object",
    "required": ["image"],
    "properties": {"image": _FILE},
    "additionalProperties": False,
}


def describe(app: FastAPI, settings: Settings) -> Schema:
    """The document of an application with all our routes."""
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    add_schemas(document, settings, *_REQUESTS)
    document["components"]["schemas"] |= _schemas(ChatChunk) | {"UploadForm": _UPLOAD_FORM}
    document_keys(document, settings)
    _add_examples(document["paths"])
    return document


def add_schemas(document: Schema, settings: Settings, *models: type[RequestModel]) -> Schema:
    """The document with the schemas of requests, within the limits of this server."""
    schemas = document["components"]["schemas"]
    for model in models:
        schema = model.model_json_schema(ref_template=_REFERENCE)
        schemas |= schema.pop("$defs", {}) | {model.__name__: schema}
    for name, field, limits in _limits(settings):
        if name in schemas:
            _main(schemas[name]["properties"][field]).update(limits)
    if "ChatRequest" in schemas and not settings.client_grammars:
        _forget_client_grammars(schemas)
    if "BatchRequest" in schemas:
        _allow_any_item(schemas["BatchRequest"]["properties"]["requests"])
    schemas["SegmentForm"] = _form(schemas["SegmentRequest"])
    schemas |= _schemas(StreamEvent, "StreamEvent")
    return document


def _limits(settings: Settings) -> Iterator[tuple[str, str, Schema]]:
    """Schemas, their fields, and what of these the settings bound."""
    prompts, points = settings.max_prompts, settings.max_points
    yield "SegmentRequest", "prompts", {"maxItems": prompts}
    yield "ChatRequest", "n", {"maximum": prompts}
    yield "BatchRequest", "requests", {"maxItems": settings.max_batch_requests}
    yield "SegmentRequest", "max_points", {"maximum": points}
    yield "PolygonFormat", "max_points", {"maximum": points}
    for name in ("SegmentRequest", "ChatRequest"):
        yield name, "max_tokens", {"maximum": settings.max_tokens}
        yield name, "deadline_ms", {"maximum": settings.max_deadline_ms}
    yield "ChatRequest", "max_completion_tokens", {"maximum": settings.max_tokens}


def _main(schema: Schema) -> Schema:
    """Of a field that may be null, the schema of what else it may be."""
    choices = _but_null(schema)
    return choices[0] if len(choices) == 1 else schema


def _but_null(schema: Schema) -> list[Schema]:
    return [one for one in schema.get("anyOf", ()) if one.get("type") != "null"]


def _without_null(schema: Schema) -> Schema:
    """The same for a form, which has no null."""
    choices = _but_null(schema)
    rest = {name: value for name, value in schema.items() if name not in ("anyOf", "default")}
    if schema.get("default") is not None:
        rest["default"] = schema["default"]
    if len(choices) == 1:
        return rest | choices[0]
    return rest | ({"anyOf": choices} if choices else {})


def _form(request: Schema) -> Schema:
    """The form of ``POST /segment``: the fields of its JSON, written as a form has them."""
    fields = {name: _without_null(deepcopy(s)) for name, s in request["properties"].items()}
    as_json = {"type": "string", "format": "json", "contentMediaType": "application/json"}
    prompts = fields["prompts"]
    fields["image"] = _FILE
    fields["prompt"] = {"type": "array", "items": {"type": "string"}, "minItems": 1}
    fields["prompt"]["maxItems"] = prompts["maxItems"]
    fields["prompts"] = as_json | {"contentSchema": prompts, "description": "As in JSON."}
    return {
        "type": "object",
        "properties": fields,
        "allOf": segment_rules(nothing=False),
        "additionalProperties": False,
    }


def _allow_any_item(requests: Schema) -> None:
    """A batch with a wrong request is answered; that request has the error."""
    wrong = {"type": "object", "description": "Whatever it is, its item has the error."}
    requests["items"] = {"anyOf": [requests["items"], wrong]}


def _forget_client_grammars(schemas: Schema) -> None:
    chat = schemas["ChatRequest"]["properties"]
    chat["structured_outputs"] = {"type": "null", "description": "Not on this server."}
    formats = chat["response_format"]["anyOf"]
    for name in ("JsonSchemaFormat", "JsonObjectFormat"):
        formats[0]["oneOf"].remove({"$ref": _REFERENCE.format(model=name)})
        del schemas[name]


def _schemas(answer: Any, name: str | None = None) -> Schema:
    """The schema of what a stream holds, and those that it refers to."""
    adapter: TypeAdapter[Any] = TypeAdapter(answer)
    schema = adapter.json_schema(ref_template=_REFERENCE, mode="serialization")
    return {**schema.pop("$defs", {}), name or answer.__name__: schema}


def _add_examples(paths: Schema) -> None:
    for (method, path), examples in REQUESTS.items():
        content = paths[path][method]["requestBody"]["content"]["application/json"]
        content["examples"] = examples
    for (method, path, status), examples in REFUSALS.items():
        content = paths[path][method]["responses"][status]["content"]["application/json"]
        content["examples"] = examples
