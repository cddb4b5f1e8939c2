"""Every example in the OpenAPI document, sent to a real server with the shipped model."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from pydantic import BaseModel

from simpleseg.chat_answer_schema import ChatCompletion
from simpleseg.schema import BatchResponse, SegmentResponse, Tokens, UploadedImage

from .test_stream import read_events

ANSWERS: dict[str, type[BaseModel]] = {
    "/segment": SegmentResponse,
    "/v1/segment/batch": BatchResponse,
    "/v1/images": UploadedImage,
    "/v1/chat/completions": ChatCompletion,
    "/tokenize": Tokens,
}


@pytest.fixture(scope="module")
def client(demo_url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=demo_url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def paths(client: httpx2.Client) -> Any:
    return client.get("/openapi.json").json()["paths"]


def test_every_route_that_takes_json_has_an_example(paths: Any) -> None:
    for path, operations in paths.items():
        for operation in operations.values():
            content = operation.get("requestBody", {}).get("content", {})
            if "application/json" in content:
                assert content["application/json"]["examples"], path


def test_examples_of_requests_are_answered(client: httpx2.Client, paths: Any) -> None:
    for path, model in ANSWERS.items():
        body = paths[path]["post"]["requestBody"]["content"]["application/json"]
        for name, example in body["examples"].items():
            answer = client.post(path, json=example["value"])
            assert answer.status_code == 200, (path, name, answer.text)
            if example["value"].get("stream"):
                assert answer.headers["content-type"].startswith("text/event-stream")
                continue
            model.model_validate(answer.json())


def test_the_example_of_a_stream_ends_with_the_answer(client: httpx2.Client, paths: Any) -> None:
    body = paths["/segment"]["post"]["requestBody"]["content"]["application/json"]
    answer = client.post("/segment", json=body["examples"]["stream"]["value"])
    assert read_events(answer.text)[-1][0] == "segmentation.completed"


def test_examples_of_refusals_are_given(client: httpx2.Client, paths: Any) -> None:
    count = 0
    for path, operations in paths.items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                content = response.get("content", {}).get("application/json", {})
                for name, example in content.get("examples", {}).items():
                    answer = client.request(method, path, json=example["x-request"])
                    assert answer.status_code == int(status), (path, name, answer.text)
                    expected = example["value"]["error"]
                    found = answer.json()["error"]
                    assert found | {"request_id": ""} == expected | {"request_id": ""}
                    count += 1
    assert count >= 10
