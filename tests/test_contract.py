"""The HTTP contract: what the server documents, what it does and what the client's schema says."""

import base64
import io
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from fastapi import FastAPI
from PIL import Image
from pydantic import ValidationError
from starlette.testclient import TestClient

from simpleseg.schema import (
    ErrorResponse,
    Health,
    ModelList,
    Output,
    SegmentRequest,
    SegmentResponse,
)
from simpleseg_polygon.codec import TARGETS
from simpleseg_server.app import create_app
from simpleseg_server.body import FORM_FIELDS
from simpleseg_server.config import Settings
from simpleseg_server.engines.scripted import ScriptedEngine

REGION = "[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]]."


@pytest.fixture
def app() -> FastAPI:
    return create_app(Settings(), ScriptedEngine([REGION]))


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


@pytest.fixture
def image() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def references(node: Any) -> Iterator[str]:
    """Every ``$ref`` in an OpenAPI document."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for child in node.values():
            yield from references(child)
    elif isinstance(node, list):
        for child in node:
            yield from references(child)


def test_every_reference_in_the_document_resolves(app: FastAPI) -> None:
    document = app.openapi()
    names = {reference.removeprefix("#/components/schemas/") for reference in references(document)}
    assert "SegmentRequest" in names
    assert names <= document["components"]["schemas"].keys()


def test_the_documented_form_has_the_fields_of_the_request(app: FastAPI) -> None:
    schemas = app.openapi()["components"]["schemas"]
    form, body = (schemas[name]["properties"] for name in ("SegmentForm", "SegmentRequest"))
    assert form.keys() == body.keys() == FORM_FIELDS


def test_every_route_documents_the_error_shape(app: FastAPI) -> None:
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            errors = [r for status, r in operation["responses"].items() if status >= "400"]
            assert errors, (path, method)
            for error in errors:
                schema = error["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorResponse"}


@pytest.mark.parametrize("model", [SegmentResponse, ErrorResponse])
def test_examples_in_the_schema_are_valid(model: Any) -> None:
    for example in model.model_json_schema()["examples"]:
        model.model_validate(example)


def test_the_document_states_the_limits_of_this_server() -> None:
    settings = Settings(max_points=77, max_prompts=3, client_grammars=True)
    schemas = create_app(settings, ScriptedEngine([REGION])).openapi()["components"]["schemas"]
    request = schemas["SegmentRequest"]["properties"]
    assert request["max_points"]["anyOf"][0]["maximum"] == 77
    assert request["prompts"]["anyOf"][0]["maxItems"] == 3
    assert schemas["SegmentForm"]["properties"]["max_points"]["maximum"] == 77
    assert "JsonSchemaFormat" in schemas


def test_keys_are_documented_as_needed_where_they_are() -> None:
    def security(path: str, **settings: Any) -> Any:
        paths = create_app(Settings(**settings), ScriptedEngine([REGION])).openapi()["paths"]
        return paths[path]["get"].get("security")

    assert {} in security("/metrics")
    assert {} not in security("/metrics", api_keys=("k",))
    assert security("/metrics", api_keys=("k",), open_paths=("/metrics",)) is None
    assert security("/livez", api_keys=("k",)) is None


def test_responses_hold_nothing_beyond_the_schema(client: TestClient, image: str) -> None:
    body = {"image": image, "prompt": "x", "return": get_args(Output)}
    response = client.post("/segment", json=body).json()
    assert SegmentResponse.model_validate(response).model_dump(exclude_unset=True) == response
    response = client.post("/segment", json={}).json()
    assert ErrorResponse.model_validate(response).model_dump(exclude_unset=True) == response
    response = client.get("/v1/models").json()
    assert ModelList.model_validate(response).model_dump() == response
    assert Health.model_validate(client.get("/health").json()).status == "ready"


def test_a_client_ignores_what_a_newer_server_adds(client: TestClient, image: str) -> None:
    response = client.post("/segment", json={"image": image, "prompt": "x"}).json()
    response["results"][0]["mood"] = response["mood"] = "good"
    assert SegmentResponse.model_validate(response).results[0].status == "ok"


def test_a_server_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValidationError, match="extra_forbidden"):
        SegmentRequest.model_validate({"image": "aGk=", "prompt": "x", "mood": "good"})


def test_tasks_are_the_targets_of_the_language() -> None:
    schema = SegmentRequest.model_json_schema()["properties"]["task"]
    assert tuple(schema["enum"]) == TARGETS


def test_no_holes_and_no_closing_vertex(client: TestClient, image: str) -> None:
    """Every ring is an outline of its own, not closed, in the order that the model wrote."""
    response = client.post("/segment", json={"image": image, "prompt": "x"}).json()
    (ring,) = response["results"][0]["polygons"]
    assert ring == [[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]
