"""Requests built and answers read, without a socket."""

import json
from typing import Any

import pytest

from simpleseg import (
    BadRequestError,
    InternalServerError,
    InvalidInputError,
    PromptItem,
    ResponseFormatError,
    ServiceUnavailableError,
    UnprocessableEntityError,
)
from simpleseg.image_input import SentImage
from simpleseg.protocol import (
    HttpResponse,
    PromptInput,
    as_prompts,
    base_headers,
    check_base_url,
    read_segment_response,
    retry_after,
    segment_request,
)
from simpleseg.results import segmentations
from simpleseg.schema import SegmentRequest
from simpleseg_polygon.geometry import Box

TRIANGLE = [[0.25, 0.25], [0.75, 0.25], [0.5, 0.75]]
FOUND = {
    "index": 0,
    "prompt": "the kite",
    "status": "ok",
    "finish_reason": "stop",
    "score": 0.9,
    "bbox": [0.25, 0.25, 0.75, 0.75],
    "polygons": [TRIANGLE],
}
ABSENT = {"index": 1, "status": "empty", "finish_reason": "stop", "bbox": None, "polygons": []}
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12, "forward_passes": 3}
BODY: dict[str, Any] = {
    "id": "seg_1",
    "created": 1,
    "model": "test",
    "image": {"width": 40, "height": 20, "exif_applied": False},
    "results": [FOUND, ABSENT],
    "usage": USAGE,
    "timings_ms": {"total": 12.5},
    "warnings": [
        {"code": "part_dropped", "message": "one part", "result": 0},
        {"code": "image_scaled", "message": "smaller"},
    ],
}
ERROR = {"code": "prompt_empty", "message": "empty", "type": "x", "request_id": "req_2"}
IMAGE = SentImage(base64="aGk=")


def answer(content: Any, status: int = 200, **headers: str) -> HttpResponse:
    """``content`` as a response; underscores in header names stand for hyphens."""
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return HttpResponse(status, {name.replace("_", "-"): v for name, v in headers.items()}, raw)


def test_a_request_holds_what_was_given_and_nothing_else() -> None:
    prompts: list[PromptInput] = ["the kite", PromptItem(text="dog", point=[0.5, 0.25])]
    request = segment_request(IMAGE, prompts, "box", {"max_points": 64, "seed": 1})
    assert (request.method, request.path) == ("POST", "/segment")
    assert json.loads(request.content) == {
        "image": {"base64": "aGk="},
        "prompts": ["the kite", {"text": "dog", "point": [0.5, 0.25]}],
        "task": "box",
        "max_points": 64,
        "seed": 1,
    }
    SegmentRequest.model_validate_json(request.content)


def test_every_request_has_its_own_id() -> None:
    first, second = (segment_request(IMAGE, ["a"], "region", {}).headers for _ in range(2))
    assert first["x-request-id"].startswith("req_")
    assert first["x-request-id"] != second["x-request-id"]


@pytest.mark.parametrize(
    ("prompts", "options", "named"),
    [
        ([], {}, "prompt"),
        (["a"], {"temperature": -1.0}, "temperature"),
        (["a"], {"max_points": 2}, "max_points"),
        (["a"], {"max_points": 2.5}, "max_points"),
        (["a"], {"max_pionts": 64}, "max_pionts"),
        (["a"], {"coordinates": "pixel"}, "coordinates"),  # a field, but not an option
        ([3], {}, "prompts.0"),
    ],
)
def test_what_cannot_be_sent_is_named(prompts: Any, options: Any, named: str) -> None:
    with pytest.raises(InvalidInputError, match=named):
        segment_request(IMAGE, prompts, "region", options)


def test_one_prompt_and_several_prompts() -> None:
    item = PromptItem(box=[0.0, 0.0, 1.0, 1.0])
    assert as_prompts(item) == [item]
    assert as_prompts(("a", item)) == ["a", item]


def test_the_base_url_must_be_one() -> None:
    assert check_base_url("https://example.com/api/") == "https://example.com/api"
    with pytest.raises(InvalidInputError, match="http"):
        check_base_url("localhost:8000")


def test_the_key_is_sent_as_a_bearer_token() -> None:
    assert base_headers("secret")["authorization"] == "Bearer secret"
    assert "authorization" not in base_headers(None)


def test_an_answer_becomes_results() -> None:
    response = read_segment_response(answer(BODY | {"later_field": 1}), prompt_count=2)
    found, absent = segmentations(response, "req_1")
    assert (found.status, found.score, found.size_hw) == ("ok", 0.9, (20, 40))
    assert found.bbox == Box(0.25, 0.25, 0.75, 0.75)
    assert found.polygons == [[(0.25, 0.25), (0.75, 0.25), (0.5, 0.75)]]
    assert [warning.code for warning in found.warnings] == ["part_dropped", "image_scaled"]
    assert [warning.code for warning in absent.warnings] == ["image_scaled"]
    assert (absent.status, absent.score, absent.bbox, absent.polygons) == ("empty", None, None, [])
    assert found.timings_ms == {"total": 12.5}
    assert found.request_id == "req_1"


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>", b"[]", b"{}", b"\xff", {**BODY, "results": [{**FOUND, "status": "fine"}]}],
)
def test_another_programs_answer_is_recognised(content: Any) -> None:
    with pytest.raises(ResponseFormatError):
        read_segment_response(answer(content), prompt_count=1)


def test_a_result_is_missing() -> None:
    with pytest.raises(ResponseFormatError, match="2 results for 3 prompts"):
        read_segment_response(answer(BODY), prompt_count=3)


def test_a_redirect_is_not_an_answer() -> None:
    with pytest.raises(ResponseFormatError, match="302"):
        read_segment_response(answer(b"", 302), prompt_count=1)


def test_an_error_carries_what_the_server_said() -> None:
    body = {"error": ERROR | {"param": "prompts[0]"}}
    with pytest.raises(UnprocessableEntityError) as caught:
        read_segment_response(answer(body, 422), prompt_count=1)
    error = caught.value
    assert (error.status, error.code, error.param) == (422, "prompt_empty", "prompts[0]")
    assert error.request_id == "req_2"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, BadRequestError), (503, ServiceUnavailableError), (502, InternalServerError)],
)
def test_a_proxys_error_has_the_statuss_class(status: int, kind: type[Exception]) -> None:
    response = answer(b"<html>bad gateway</html>", status, x_request_id="req_9", retry_after="2")
    with pytest.raises(kind) as caught:
        read_segment_response(response, prompt_count=1)
    assert vars(caught.value)["request_id"] == "req_9"
    assert vars(caught.value)["retry_after_ms"] == 2000


def test_retries_end() -> None:
    busy = answer({"error": ERROR}, 503, retry_after_ms="20")
    waits = [retry_after(busy, attempt, max_retries=2) for attempt in range(3)]
    assert waits == [pytest.approx(0.02, rel=0.11), pytest.approx(0.02, rel=0.11), None]
    assert retry_after(answer(BODY), 0, max_retries=2) is None
