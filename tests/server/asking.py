"""What the tests of ``POST /segment`` share: to ask, and to read answers and refusals."""

from typing import Any

from starlette.testclient import TestClient

from simpleseg.schema import SegmentResponse


def post(client: TestClient, **fields: Any) -> Any:
    return client.post("/segment", json=fields)


def answer(client: TestClient, **fields: Any) -> Any:
    response = post(client, **fields)
    assert response.status_code == 200, response.text
    SegmentResponse.model_validate(response.json())
    return response.json()


def refusal(response: Any) -> tuple[int, str, str | None]:
    """Status, code and param of an error in the one shape."""
    error = response.json()["error"]
    assert response.json().keys() == {"error"}
    assert error["request_id"] == response.headers["x-request-id"]
    assert error["message"]
    return response.status_code, error["code"], error["param"]
