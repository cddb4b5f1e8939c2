"""``POST /segment``: what is refused, and that the next request works."""

import json
import logging
from typing import Any

import pytest

from .asking import answer, post, refusal

I64 = "@image"
BAD_JSON = [
    ({}, 400, "prompt_missing", None),
    ({"prompt": "x"}, 400, "image_missing", "image"),
    ({"image": I64}, 400, "prompt_missing", None),
    ({"image": I64, "prompts": []}, 400, "prompt_missing", None),
    ({"image": I64, "prompt": "x", "prompts": ["y"]}, 400, "prompt_ambiguous", None),
    ({"image": I64, "prompt": "x", "propmt": 1}, 400, "unknown_parameter", "propmt"),
    ({"image": I64, "prompt": "x", "streaming": False}, 400, "unknown_parameter", "streaming"),
    ({"image": I64, "prompt": "x", "outputs": []}, 400, "unknown_parameter", "outputs"),
    ({"image": I64, "prompt": "x", "a b": 1}, 400, "unknown_parameter", None),
    ({"image": I64, "prompts": [{"txt": "x"}]}, 400, "unknown_parameter", "prompts[0].txt"),
    ({"image": {}, "prompt": "x"}, 400, "image_missing", "image"),
    ({"image": {"url": "x", "base64": "y"}, "prompt": "x"}, 400, "image_source_ambiguous", "image"),
    ({"image": 5, "prompt": "x"}, 400, "type_invalid", "image"),
    ({"image": "", "prompt": "x"}, 422, "image_empty", "image"),
    ({"image": "not base64", "prompt": "x"}, 400, "image_base64_invalid", "image"),
    ({"image": "aGVsbG8=", "prompt": "x"}, 415, "image_type_unsupported", "image"),
    (
        {"image": {"url": "http://127.0.0.1/a"}, "prompt": "x"},
        422,
        "image_url_blocked",
        "image.url",
    ),
    ({"image": "https://x.test/a.png", "prompt": "x"}, 422, "image_url_blocked", "image"),
    ({"image": I64, "prompt": ""}, 422, "prompt_empty", "prompt"),
    ({"image": I64, "prompts": ["a", " \t\u0000 "]}, 422, "prompt_empty", "prompts[1]"),
    ({"image": I64, "prompt": {}}, 422, "prompt_empty", "prompt"),
    ({"image": I64, "prompt": "x" * 8193}, 422, "prompt_too_long", "prompt"),
    ({"image": I64, "prompt": None}, 400, "prompt_missing", None),
    ({"image": I64, "prompt": True}, 400, "type_invalid", "prompt"),
    ({"image": I64, "prompts": ["x"] * 9}, 422, "too_many_prompts", "prompts"),
    ({"image": I64, "prompt": {"point": [1]}}, 422, "wrong_length", "prompt.point"),
    ({"image": I64, "prompt": {"point": [1.5, 0]}}, 422, "point_outside_image", "prompt.point"),
    ({"image": I64, "prompt": {"point": ["0", 0]}}, 400, "type_invalid", "prompt.point[0]"),
    ({"image": I64, "prompt": {"point": [True, 0]}}, 400, "type_invalid", "prompt.point[0]"),
    ({"image": I64, "prompts": [{"box": [0, 0, 0, 1]}]}, 422, "box_degenerate", "prompts[0].box"),
    ({"image": I64, "prompt": {"box": [2, 2, 3, 3]}}, 422, "box_outside_image", "prompt.box"),
    ({"image": I64, "prompt": "x", "task": "mask"}, 422, "value_not_allowed", "task"),
    ({"image": I64, "prompt": "x", "return": ["dxf"]}, 422, "value_not_allowed", "return[0]"),
    ({"image": I64, "prompt": "x", "return": "rle"}, 400, "type_invalid", "return"),
    ({"image": I64, "prompt": "x", "max_points": 2}, 422, "value_out_of_range", "max_points"),
    ({"image": I64, "prompt": "x", "max_points": 10**9}, 422, "value_out_of_range", "max_points"),
    ({"image": I64, "prompt": "x", "max_tokens": 0}, 422, "value_out_of_range", "max_tokens"),
    ({"image": I64, "prompt": "x", "max_tokens": 55}, 422, "value_out_of_range", "max_tokens"),
    ({"image": I64, "prompt": "x", "max_tokens": 64.5}, 400, "type_invalid", "max_tokens"),
    ({"image": I64, "prompt": "x", "temperature": -1}, 422, "value_out_of_range", "temperature"),
    ({"image": I64, "prompt": "x", "seed": 2**64}, 422, "value_out_of_range", "seed"),
    ({"image": I64, "prompt": "x", "seed": "1"}, 400, "type_invalid", "seed"),
]


@pytest.mark.parametrize(("body", "status", "code", "param"), BAD_JSON)
def test_bad_fields_are_named_and_the_next_request_works(
    client: Any, image64: str, body: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    text = json.dumps(body).replace(I64, image64)
    response = client.post("/segment", content=text, headers={"content-type": "application/json"})
    assert refusal(response) == (status, code, param)
    answer(client, image=image64, prompt="x")


@pytest.mark.parametrize(
    ("raw", "code", "param"),
    [
        (b'{"image":"@","prompt":{"point":[NaN,0]}}', "coordinate_not_finite", "prompt.point[0]"),
        (b'{"image":"@","prompt":{"box":[0,0,1,1e999]}}', "coordinate_not_finite", "prompt.box[3]"),
        (b'{"image":"@","prompt":"x","temperature":-Infinity}', "number_not_finite", "temperature"),
        (b'{"image":"@","prompt":"x","prompt":"y"}', "json_duplicate_key", None),
        (b'{"image":"@","prompt":"\\ud800"}', "json_invalid", None),
        (b'{"image":"@","prompt":"x","\\udfff":1}', "json_invalid", None),
        (b'{"image":"@","prompt":"\xff"}', "json_invalid", None),
        ('{"image":"@","prompt":"x"}'.encode("utf-16"), "json_invalid", None),
        (b'{"image":"@","prompt":"x","seed":' + b"9" * 5000 + b"}", "json_invalid", None),
        (b'{"a":' * 100_000 + b"}" * 100_000, "json_invalid", None),
        (b"[" * 40 + b"]" * 40, "json_invalid", None),
        (b'{"a":' + b"[" * 20 + b"]" * 20 + b"}", "json_invalid", None),
        (b"", "json_invalid", None),
        (b"null", "json_invalid", None),
        (b'{"image":', "json_invalid", None),
    ],
)
@pytest.mark.catalogue("B7", "B15")
def test_bad_json_is_refused_and_the_next_request_works(
    client: Any, image64: str, raw: bytes, code: str, param: str | None
) -> None:
    content = raw.replace(b"@", image64.encode())
    response = client.post(
        "/segment", content=content, headers={"content-type": "application/json"}
    )
    assert response.status_code in (400, 422)
    assert refusal(response)[1:] == (code, param)
    answer(client, image=image64, prompt="x")


def form(*parts: bytes, end: bytes = b"--B--\r\n") -> bytes:
    return b"".join(b"--B\r\n" + part + b"\r\n" for part in parts) + end


IMAGE_PART = b'Content-Disposition: form-data; name="image"; filename="x"\r\n\r\nGIF89a'
PROMPT_PART = b'Content-Disposition: form-data; name="prompt"\r\n\r\nx'


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "form_invalid"),
        (b"junk", 400, "form_invalid"),
        (form(PROMPT_PART), 400, "image_missing"),
        (form(IMAGE_PART), 400, "prompt_missing"),
        (form(IMAGE_PART, IMAGE_PART, PROMPT_PART), 400, "image_source_ambiguous"),
        (form(IMAGE_PART, PROMPT_PART, end=b""), 400, "form_invalid"),
        (form(IMAGE_PART, PROMPT_PART, end=b"--B"), 400, "form_invalid"),
        (form(IMAGE_PART, *[PROMPT_PART] * 65), 400, "form_invalid"),
        (form(IMAGE_PART, PROMPT_PART + b"x" * 70_000), 413, "form_field_too_large"),
        (form(IMAGE_PART, b"X: " + b"x" * 5000 + b"\r\n" + PROMPT_PART), 400, "form_invalid"),
        (form(IMAGE_PART, b"no head at all"), 400, "form_invalid"),
        (form(IMAGE_PART, PROMPT_PART.replace(b'"prompt"', b'"a b"')), 400, "form_invalid"),
        (form(IMAGE_PART, PROMPT_PART.replace(b"prompt", b"propmt")), 400, "unknown_parameter"),
        (
            form(IMAGE_PART, PROMPT_PART, PROMPT_PART.replace(b"prompt", b"seed")),
            400,
            "json_invalid",
        ),
        (form(IMAGE_PART, PROMPT_PART[:-1] + b"\xff"), 400, "form_invalid"),
        (form(IMAGE_PART, PROMPT_PART), 422, "image_truncated"),
    ],
)
def test_bad_forms_are_refused_and_the_next_request_works(
    client: Any, image64: str, content: bytes, status: int, code: str
) -> None:
    headers = {"content-type": "multipart/form-data; boundary=B"}
    response = client.post("/segment", content=content, headers=headers)
    assert refusal(response)[:2] == (status, code)
    answer(client, image=image64, prompt="x")


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"content-type": "text/plain"}, "content_type_unsupported"),
        ({"content-type": ""}, "content_type_unsupported"),
        ({"content-type": "application/json", "content-encoding": "gzip"}, "encoding_unsupported"),
    ],
)
@pytest.mark.catalogue("E11", "E12")
def test_other_bodies_are_refused(client: Any, headers: dict[str, str], code: str) -> None:
    response = client.post("/segment", content=b"{}", headers=headers)
    assert refusal(response) == (415, code, None)


def test_control_characters_do_not_reach_the_engine(client: Any, engine: Any, image64: str) -> None:
    answer(client, image=image64, prompt="the\u0000red\u001b[31m\r\n{0} %s e\u0301")
    assert "of the red [31m {0} %s \u00e9 in" in engine.requests[0].instruction


def test_one_line_is_logged_without_prompt_and_image(
    client: Any, image64: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "simpleseg_server"):
        answer(client, image=image64, prompt="canary-phrase")
    lines = [r.getMessage() for r in caplog.records if r.name == "simpleseg_server"]
    (line,) = lines
    for word in ("request_id=req_", "route=/segment", "status=200", "generate_ms=", "outcome=ok"):
        assert word in line
    assert "canary" not in line
    assert image64[:20] not in line


def test_errors_never_repeat_the_input(client: Any, image64: str) -> None:
    bodies: list[dict[str, Any]] = [
        {"image": "canary-4711!", "prompt": "x"},
        {"image": image64, "prompt": "x", "task": "canary-4711"},
        {"image": image64, "prompt": {"point": ["canary-4711", 0]}},
        {"image": {"url": "http://canary-4711/"}, "prompt": "x"},
        {"image": image64, "prompt": "x", "seed": "canary-4711"},
    ]
    for body in bodies:
        response = post(client, **body)
        assert response.status_code >= 400
        assert "4711" not in response.text
