"""Section B: prompts, boxes, points and options, on a real server."""

import json
import unicodedata
from typing import Any

import pytest

from .canary import IMAGE64, Canary, png64, unharmed


def refused(canary: Canary, body: str | bytes) -> tuple[int, str]:
    """Status and code of the refusal of a body, of which the engine hears nothing."""
    asked = canary.asked()
    response = canary.client.post(
        "/segment", content=body, headers={"Content-Type": "application/json"}
    )
    assert canary.asked() == asked, "the engine was asked"
    assert response.json().keys() == {"error"}, response.text[:200]
    return response.status_code, response.json()["error"]["code"]


def body_of(**fields: Any) -> str:
    return json.dumps({"image": IMAGE64, "prompt": "a dog", **fields})


def served(canary: Canary, **fields: Any) -> Any:
    response = canary.segment(**fields)
    assert response.status_code == 200, response.text
    return response.json()


def test_B1_empty_prompts(canary: Canary) -> None:
    for prompt in ("", " ", "\t\r\n", "\x00\x1f\x7f", "\u2003\u3000", {"text": " "}, {}):
        assert refused(canary, body_of(prompt=prompt)) == (422, "prompt_empty")
    assert served(canary, prompt={"box": [0, 0, 1, 1]})["results"][0]["status"] == "ok"


def test_B2_long_prompts(canary: Canary) -> None:
    for prompt in ("x" * 8193, "é" * 4097, "x" * 10**6):
        assert refused(canary, body_of(prompt=prompt)) == (422, "prompt_too_long")
    assert refused(canary, body_of(prompt="x" * 35 * 2**20)) == (413, "payload_too_large")
    assert served(canary, prompt="é" * 4096)


def test_B3_control_characters(canary: Canary) -> None:
    controls = "".join(chr(c) for c in (*range(32), *range(127, 160)))
    result = served(canary, prompt=f"a{controls}dog\x1b[31m")["results"][0]
    assert result["prompt"] == "a dog [31m"
    assert canary.instruction().isprintable()
    log = canary.log.read_text()
    assert all(c.isprintable() or c == "\n" for c in log)


def test_B6_unicode(canary: Canary) -> None:
    asked = []
    for prompt in ("café", "cafe\u0301"):
        result = served(canary, prompt=prompt)["results"]
        asked.append((result, canary.instruction()))
    assert asked[0] == asked[1], "one normal form for the engine too"
    for prompt in (
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "a" + "\u0301" * 1000,
        "\u202egod\u202c",
        "\u0430\u0440\u0440le",
        "\ufeffdog\ufffe\uffff\U0010ffff",
        "\u05db\u05dc\u05d1",
    ):
        answer = served(canary, prompt=prompt)["results"][0]
        assert answer["prompt"] == unicodedata.normalize("NFC", prompt)
        assert answer["prompt"] in canary.instruction()
        assert refused(canary, body_of(prompt=prompt, **{prompt: 1})) == (400, "unknown_parameter")
    headers = [(b"X-Request-Id", "\u202egod".encode()), (b"User-Agent", "\u202egod".encode())]
    assert canary.client.post("/\u202egod", json={}, headers=headers).status_code == 404
    assert canary.log.read_text().isascii()


LITERAL = (
    "[[[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]]].",
    "{{7*7}} ${7*7} #{7*7} {0} {prompt}",
    "${jndi:ldap://127.0.0.1/x}",
    "%s%n%x %(prompt)s",
    "<script>alert(1)</script>",
    "'; DROP TABLE masks; --",
)


@pytest.mark.parametrize("prompt", LITERAL)
def test_B8_words_of_other_languages(canary: Canary, prompt: str) -> None:
    assert served(canary, prompt=prompt)["results"][0]["prompt"] == prompt
    assert prompt in canary.instruction()
    assert "49" not in canary.instruction()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_B9_numbers_that_are_not_finite(canary: Canary, number: str) -> None:
    shapes = (
        '{"point": [0.5, @]}',
        '{"box": [0, 0, @, 1]}',
        '{"polygons": [[[0, 0], [1, 0], [1, @]]]}',
    )
    for shape in shapes:
        body = body_of(prompt="@").replace('"@"', shape.replace("@", number))
        assert refused(canary, body) == (422, "coordinate_not_finite")
        as_text = body_of(prompt="@").replace('"@"', shape.replace("@", f'"{number}"'))
        assert refused(canary, as_text) == (400, "type_invalid")


def test_B10_swapped_corners(canary: Canary) -> None:
    swapped = served(canary, prompt={"box": [0.9, 0.8, 0.1, 0.2]})
    asked = canary.instruction()
    assert [w["code"] for w in swapped["warnings"]] == ["box_reordered"]
    assert served(canary, prompt={"box": [0.1, 0.2, 0.9, 0.8]})["warnings"] == []
    assert canary.instruction() == asked


@pytest.mark.parametrize("box", [[0, 0, 0, 1], [0.2, 0.3, 0.8, 0.3], [0.5] * 4, [0, 0, -0.0, 1]])
def test_B11_boxes_without_area(canary: Canary, box: list[float]) -> None:
    assert refused(canary, body_of(prompt={"box": box})) == (422, "box_degenerate")


def test_B12_boxes_outside(canary: Canary) -> None:
    for huge in (1e308, 2**63, 2**64 - 1):
        clipped = served(canary, prompt={"box": [-huge, -huge, huge, huge]})
        assert [w["code"] for w in clipped["warnings"]] == ["box_clipped"]
        box = [huge / 2, 0, huge, 1]
        assert refused(canary, body_of(prompt={"box": box})) == (422, "box_outside_image")
        for shape in ({"point": [huge, 0]}, {"polygons": [[[0, 0], [1, 0], [1, -huge]]]}):
            assert refused(canary, body_of(prompt=shape)) == (422, "point_outside_image")
    assert served(canary, prompt={"box": [0.5, 0.5, 1.5, 0.9]})["warnings"]


def test_B13_units_are_not_guessed(canary: Canary) -> None:
    for prompt in ({"box": [20, 10, 100, 50]}, {"point": [20, 10]}):
        assert refused(canary, body_of(prompt=prompt))[0] == 422
        assert served(canary, prompt=prompt, coordinates="pixel")
    served(canary, prompt={"point": [0.5, 0.5]})
    middle = canary.instruction()
    served(canary, prompt={"point": [0.5, 0.5]}, coordinates="pixel")
    assert canary.instruction() != middle
    served(canary, prompt={"point": [100, 50]}, coordinates="pixel")
    assert canary.instruction() == middle


CROWD: tuple[tuple[Any, tuple[int, str]], ...] = (
    ({"prompts": [{"box": [0, 0, 1, 1]}] * 10**5}, (422, "too_many_prompts")),
    ({"prompts": [{"point": [0, 0]}] * 10**5}, (422, "too_many_prompts")),
    ({"prompt": {"polygons": [[[0, 0]] * 10**5]}}, (422, "too_many_points")),
    ({"prompt": {"polygons": [[[0, 0], [1, 0], [1, 1]]] * 10**4}}, (422, "too_many_points")),
    ({"prompt": {"box": [[0, 0], [1, 1]]}}, (400, "type_invalid")),
    ({"prompt": {"box": [[0], [0], [1], [1]]}}, (400, "type_invalid")),
    ({"prompt": {"box": "0,0,1,1"}}, (400, "type_invalid")),
    ({"prompt": {"box": [True, False, True, True]}}, (400, "type_invalid")),
    ({"prompt": {"box": {"x": 0}}}, (400, "type_invalid")),
    ({"prompt": {"point": [0]}}, (422, "wrong_length")),
    ({"prompt": {"point": [0] * 10**5}}, (422, "wrong_length")),
    ({"prompt": {"polygons": [[[0, 0], [1, 1]]]}}, (422, "wrong_length")),
)


@pytest.mark.parametrize(("fields", "expected"), CROWD, ids=range(len(CROWD)))
def test_B14_crowds_and_wrong_shapes(canary: Canary, fields: Any, expected: Any) -> None:
    body = {"image": IMAGE64, **fields}
    assert refused(canary, json.dumps(body)) == expected


OPTIONS: tuple[tuple[str, tuple[int, str]], ...] = (
    ('"mood": 1', (400, "unknown_parameter")),
    ('"max_tokens": 0', (422, "value_out_of_range")),
    ('"max_tokens": -1', (422, "value_out_of_range")),
    ('"max_tokens": 1000000000', (422, "value_out_of_range")),
    ('"max_tokens": "1"', (400, "type_invalid")),
    ('"temperature": NaN', (422, "number_not_finite")),
    ('"temperature": 2.01', (422, "value_out_of_range")),
    ('"temperature": true', (400, "type_invalid")),
    ('"seed": 18446744073709551616', (422, "value_out_of_range")),
    ('"seed": -1', (422, "value_out_of_range")),
    ('"samples": 17', (422, "value_out_of_range")),
    ('"samples": 0', (422, "value_out_of_range")),
    ('"refine": 1', (400, "type_invalid")),
    ('"max_points": 1025', (422, "value_out_of_range")),
    ('"simplify": 1.5', (422, "value_out_of_range")),
    ('"simplify": Infinity', (422, "number_not_finite")),
    ('"stream": "yes"', (400, "type_invalid")),
    ('"include": ["weights"]', (422, "value_not_allowed")),
    ('"coordinates": "percent"', (422, "value_not_allowed")),
    ('"model": "another"', (404, "model_not_found")),
)


@pytest.mark.parametrize(("option", "expected"), OPTIONS)
def test_B16_options(canary: Canary, option: str, expected: tuple[int, str]) -> None:
    assert refused(canary, f"{body_of()[:-1]}, {option}}}") == expected


@pytest.mark.parametrize("deadline", [0, -1, 10**12, 2**70, 1.5])
def test_B17_deadlines(canary: Canary, deadline: float) -> None:
    assert refused(canary, body_of(deadline_ms=deadline))[0] in (400, 422)


def test_B18_unknown_outputs(canary: Canary) -> None:
    for output in ("gif", "", "PNG", "../png"):
        refusal = refused(canary, body_of(**{"return": [output]}))
        assert refusal == (422, "value_not_allowed")


def test_B18_the_mask_of_50_megapixels(canary_server: Canary) -> None:
    """It takes what its pixels do, and leaves nothing more behind the second time."""
    side = 7071
    body: dict[str, Any] = {"image": png64(side, side), "return": ["png", "rle"]}
    served(canary_server, **body)
    with unharmed(canary_server) as canary, canary.peak() as peak:
        answer = served(canary, **body)
    assert answer["results"][0]["png"]
    assert answer["results"][0]["rle"]["size"] == [side, side]
    assert peak.growth_bytes < 3 * 3 * side * side  # three times the picture
