"""What the chat refuses, and by which name; what it takes because it asks for nothing else."""

from dataclasses import replace
from typing import Any

import pytest

from simpleseg_server.engines.base import ClientGrammar, GrammarKind
from simpleseg_server.grammar_judge import GrammarJudge

from .asking import refusal
from .chatting import PATH, QUESTION, complete, image_part, user
from .conftest import CAPABILITIES, PhraseEngine


def refused(client: Any, *messages: Any, **fields: Any) -> tuple[int, str, str | None]:
    return refusal(client.post(PATH, json={"messages": list(messages), **fields}))


SCHEMA = {"name": "x", "schema": {"type": "object"}}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("response_format", {"type": "json_schema", "json_schema": SCHEMA}),
        ("response_format", {"type": "json_object"}),
        ("structured_outputs", {"regex": "(a+)+b"}),
    ],
)
def test_grammars_of_clients(make_client: Any, image64: str, name: str, value: Any) -> None:
    """Not even where the engine takes them."""
    with make_client(PhraseEngine(replace(CAPABILITIES, client_grammars=True))) as client:
        refusal = refused(client, user(image64), **{name: value})
    assert refusal == (400, "parameter_not_allowed", name)


GRAMMARS: list[tuple[dict[str, Any], GrammarKind, Any]] = [
    ({"response_format": {"type": "json_schema", "json_schema": SCHEMA}}, "json", SCHEMA["schema"]),
    ({"response_format": {"type": "json_object"}}, "json_object", True),
    ({"structured_outputs": {"json": {"type": "object"}}}, "json", {"type": "object"}),
    ({"structured_outputs": {"regex": "a+"}}, "regex", "a+"),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, "choice", ["yes", "no"]),
    ({"structured_outputs": {"grammar": 'root ::= "a"'}}, "grammar", 'root ::= "a"'),
]


def test_grammars_where_the_operator_and_the_engine_take_them(
    make_client: Any, image64: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of them compile is shown in tests/reliability."""

    async def every(*_: Any) -> bool:
        return True

    monkeypatch.setattr(GrammarJudge, "allows", every)
    engine = PhraseEngine(replace(CAPABILITIES, client_grammars=True))
    with make_client(engine, client_grammars=True) as client:
        for fields, kind, value in GRAMMARS:
            complete(client, user(image64), **fields)
            request = engine.requests[-1]
            assert request.client_grammar == ClientGrammar(kind, value)
            assert (request.target, request.constrained) == ("text", False)


@pytest.mark.parametrize(("fields", "kind", "value"), GRAMMARS)
def test_grammars_that_the_engine_does_not_take(
    make_client: Any, engine: Any, image64: str, fields: dict[str, Any], kind: str, value: Any
) -> None:
    with make_client(engine, client_grammars=True) as client:
        [name] = fields
        answer = refused(client, user(image64), **fields)
    assert answer == (400, "parameter_not_allowed", name)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"structured_outputs": {}}, (400, "parameter_ambiguous", "structured_outputs")),
        (
            {"structured_outputs": {"regex": "a", "choice": ["a"]}},
            (400, "parameter_ambiguous", "structured_outputs"),
        ),
        (
            {"structured_outputs": {"whitespace_pattern": " "}},
            (400, "unknown_parameter", "structured_outputs.whitespace_pattern"),
        ),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "text"}},
            (400, "parameter_ambiguous", "structured_outputs"),
        ),
        (
            {"structured_outputs": {"regex": "a" * 20_000}},
            (422, "grammar_rejected", "structured_outputs"),
        ),
        (
            {"response_format": {"type": "json_schema"}},
            (400, "type_invalid", "response_format.json_schema"),
        ),
    ],
)
def test_grammars_that_are_none(
    make_client: Any, image64: str, fields: dict[str, Any], expected: tuple[int, str, str]
) -> None:
    engine = PhraseEngine(replace(CAPABILITIES, client_grammars=True))
    with make_client(engine, client_grammars=True) as client:
        assert refused(client, user(image64), **fields) == expected


UNKNOWN = """
    guided_json guided_regex guided_choice guided_grammar best_of min_tokens bad_words priority
    cache_salt chat_template chat_template_kwargs mm_processor_kwargs prompt_embeds top_k
    repetition_penalty prompt include_reasoning add_generation_prompt echo ignore_eos lora_request
"""


@pytest.mark.parametrize("name", UNKNOWN.split())
def test_unknown_parameters(client: Any, engine: Any, image64: str, name: str) -> None:
    fields = {name: 1}
    assert refused(client, user(image64), **fields) == (400, "unknown_parameter", name)
    assert engine.requests == []


@pytest.mark.parametrize("kind", ["json", "regex", "choice", "grammar"])
def test_the_successor_of_a_guided_parameter_is_named(client: Any, image64: str, kind: str) -> None:
    body = {"messages": [user(image64)], f"guided_{kind}": "x"}
    message = client.post(PATH, json=body).json()["error"]["message"]
    assert f"guided_{kind}" in message
    assert f"structured_outputs.{kind}" in message
    assert ("response_format" in message) == (kind == "json")
    assert "where the operator enables client grammars" in message


UNSERVED: dict[str, Any] = {
    "top_p": 0.9,
    "top_logprobs": 5,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "logit_bias": {"50256": -100},
    "stop": ["]"],
    "store": True,
    "tools": [{"type": "function", "function": {"name": "x"}}],
    "tool_choice": "required",
    "parallel_tool_calls": "yes",
    "functions": [{"name": "x"}],
    "function_call": {"name": "x"},
    "modalities": ["text", "audio"],
    "service_tier": "flex",
    "audio": {"voice": "alloy", "format": "mp3"},
    "moderation": {"model": "x"},
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_options": {"mode": "implicit"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "high",
    "verbosity": "low",
    "web_search_options": {},
    "response_format": {"type": "yaml"},
}


@pytest.mark.parametrize("name", UNSERVED)
def test_parameters_of_openais_that_are_not_served(client: Any, image64: str, name: str) -> None:
    fields = {name: UNSERVED[name]}
    assert refused(client, user(image64), **fields) == (400, "unsupported_value", name)


HARMLESS: list[dict[str, Any]] = [
    dict.fromkeys(UNSERVED),
    {"top_p": 1, "top_logprobs": 0, "presence_penalty": 0, "frequency_penalty": 0.0},
    {"logit_bias": {}, "stop": [], "store": False, "tools": [], "functions": []},
    {"tool_choice": "auto", "parallel_tool_calls": True, "modalities": ["text"]},
    {"service_tier": "auto", "reasoning_effort": "none", "response_format": {"type": "text"}},
    {"n": 1, "stream": False, "logprobs": False, "temperature": 0, "seed": -1},
    {"n": None, "stream": None, "logprobs": None, "temperature": None, "stream_options": None},
    {"user": "u", "metadata": {"a": "b"}, "safety_identifier": "s", "prompt_cache_key": "k"},
]


@pytest.mark.parametrize("fields", HARMLESS)
def test_what_asks_for_nothing_else_is_taken(
    client: Any, engine: Any, image64: str, fields: dict[str, Any]
) -> None:
    complete(client, user(image64))
    complete(client, user(image64), **fields)
    plain, taken = engine.requests
    assert taken.seed == (2**63 - 1 if "seed" in fields else None)
    names = ("instruction", "target", "max_tokens", "temperature", "constrained", "history")
    assert [getattr(taken, n) for n in names] == [getattr(plain, n) for n in names]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"n": 9}, (422, "value_out_of_range", "n")),
        ({"n": 0}, (422, "value_out_of_range", "n")),
        ({"max_tokens": 5}, (422, "value_out_of_range", "max_tokens")),
        ({"max_tokens": 10**6}, (422, "value_out_of_range", "max_tokens")),
        (
            {"max_completion_tokens": 10**6},
            (422, "value_out_of_range", "max_completion_tokens"),
        ),
        (
            {"max_tokens": 9, "max_completion_tokens": 9},
            (400, "parameter_ambiguous", "max_completion_tokens"),
        ),
        ({"temperature": 3}, (422, "value_out_of_range", "temperature")),
        ({"seed": 2**63}, (422, "value_out_of_range", "seed")),
        ({"seed": "1"}, (400, "type_invalid", "seed")),
        ({"stream": 1}, (400, "type_invalid", "stream")),
        ({"stream_options": {}}, (422, "not_applicable", "stream_options")),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            (400, "unsupported_value", "stream_options.include_obfuscation"),
        ),
        (
            {"stream": True, "stream_options": {"continuous_usage_stats": True}},
            (400, "unknown_parameter", "stream_options.continuous_usage_stats"),
        ),
        ({"model": "gpt-5"}, (404, "model_not_found", "model")),
        (
            {"response_format": {"type": "simpleseg_polygons", "max_points": 10**6}},
            (422, "value_out_of_range", "response_format.max_points"),
        ),
        (
            {"response_format": {"type": "simpleseg_polygons", "points": 3}},
            (400, "unknown_parameter", "response_format.points"),
        ),
        ({"messages": []}, (422, "wrong_length", "messages")),
        ({"messages": None}, (400, "type_invalid", "messages")),
    ],
)
def test_values_out_of_range(
    client: Any, image64: str, fields: dict[str, Any], expected: tuple[int, str, str]
) -> None:
    body = {"messages": [user(image64)], **fields}
    assert refusal(client.post(PATH, json=body)) == expected


def _said(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


TEXT = {"type": "text", "text": QUESTION}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (_said(QUESTION), (400, "image_missing", "messages")),
        (_said([TEXT]), (400, "image_missing", "messages")),
        (_said([]), (422, "wrong_length", "messages[0].content")),
        (_said(None), (400, "type_invalid", "messages[0].content")),
        (_said([{"type": "input_audio"}]), (400, "unsupported_value", "messages[0].content[0]")),
        (_said([QUESTION]), (400, "unsupported_value", "messages[0].content[0]")),
        (_said(QUESTION, name="Ann"), (400, "unsupported_value", "messages[0].name")),
        (_said(QUESTION, mood="x"), (400, "unknown_parameter", "messages[0].mood")),
        ({"role": "tool", "content": "x"}, (400, "unsupported_value", "messages[0]")),
        ({"role": "assistant", "content": "x"}, (400, "unsupported_value", "messages")),
        ("x", (400, "unsupported_value", "messages[0]")),
    ],
)
def test_messages_that_are_not_read(
    client: Any, message: Any, expected: tuple[int, str, str]
) -> None:
    assert refused(client, message) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://example.com/x.png", (422, "image_url_blocked")),
        ("file:///etc/passwd", (422, "image_url_blocked")),
        ("data:image/png;base64,%", (400, "image_base64_invalid")),
        ("data:image/png;base64,aGVsbG8=", (415, "image_type_unsupported")),
    ],
)
def test_images_as_segment_takes_them(client: Any, url: str, expected: tuple[int, str]) -> None:
    parts = [{"type": "image_url", "image_url": {"url": url}}, TEXT]
    field = "messages[0].content[0].image_url.url"
    assert refused(client, _said(parts)) == (*expected, field)


def test_an_unknown_field_of_an_image(client: Any, image64: str) -> None:
    parts = [image_part(image64, uuid="x"), TEXT]
    field = "messages[0].content[0].image_url.uuid"
    assert refused(client, _said(parts)) == (400, "unknown_parameter", field)


def test_two_images(client: Any, image64: str) -> None:
    field = "messages[1].content[0].image_url.url"
    twice = refused(client, user(image64), user(image64))
    assert twice == (422, "too_many_images", field)
    parts = [image_part(image64), image_part(image64), TEXT]
    field = "messages[0].content[1].image_url.url"
    assert refused(client, _said(parts)) == (422, "too_many_images", field)


@pytest.mark.parametrize("text", ["", " \n"])
def test_a_question_without_a_word(client: Any, image64: str, text: str) -> None:
    expected = (422, "prompt_empty", "messages[0].content")
    assert refused(client, user(image64, text)) == expected
    assert refused(client, _said([image_part(image64)])) == expected


def test_texts_that_are_too_long_together(make_client: Any, engine: Any, image64: str) -> None:
    system = {"role": "system", "content": "é" * 30}
    with make_client(engine, max_chat_bytes=60 + len(QUESTION)) as client:
        complete(client, system, user(image64))
        longer = refused(client, system, user(image64, QUESTION + "."))
    assert longer == (422, "prompt_too_long", "messages")


def test_a_body_that_is_no_json(client: Any, png: bytes) -> None:
    response = client.post(PATH, files={"image": png})
    assert refusal(response) == (415, "content_type_unsupported", None)
    response = client.post(PATH, content=b"{", headers={"content-type": "application/json"})
    assert refusal(response) == (400, "json_invalid", None)


def test_no_refusal_repeats_what_was_sent(client: Any, image64: str) -> None:
    for fields in ({"model": "canary-4711"}, {"stop": "canary-4711"}, {"n": "canary-4711"}):
        response = client.post(PATH, json={"messages": [user(image64)], **fields})
        assert response.status_code in (400, 404)
        assert "4711" not in response.text
