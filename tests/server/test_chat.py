"""``POST /v1/chat/completions``: answers, streams, conversations."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simpleseg_polygon.prompts import TARGETS, Target, instruction, templates
from simpleseg_server.engines import scripted
from simpleseg_server.engines.base import PromptFault, PromptRefusedError, Turn, Usage
from simpleseg_server.engines.scripted import Reply

from .asking import answer, refusal
from .chatting import PATH, QUESTION, chunks, complete, image_part, joined, last_of, user
from .conftest import CAPABILITIES, TRIANGLE, PhraseEngine

REPLIES = {
    "region": TRIANGLE,
    "box": "[[0.1, 0.2, 0.5, 0.9]].",
    "point": "[[0.25, 0.5]].",
    "text": "A red car.",
}


def test_an_answer_in_openais_shape(client: Any, image64: str) -> None:
    completion = complete(client, user(image64), model="scripted-model")
    assert completion["id"].startswith("chatcmpl-")
    assert completion["object"] == "chat.completion"
    assert completion["model"] == "scripted-model"
    (choice,) = completion["choices"]
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == TRIANGLE
    assert choice["message"]["refusal"] is None
    length = len(TRIANGLE) + 1
    assert completion["usage"] == {
        "prompt_tokens": 16,
        "completion_tokens": length,
        "total_tokens": 16 + length,
    }


@pytest.mark.parametrize("task", TARGETS)
def test_it_is_what_segment_answers(client: Any, engine: Any, image64: str, task: Target) -> None:
    engine.default = Reply(REPLIES[task], logprob=math.log(0.5))
    plain = answer(client, image=image64, prompt="the left dog", task=task)
    message = complete(client, user(image64, instruction(task, "the left dog")))["choices"][0][
        "message"
    ]
    assert message["segmentation"] == plain["results"][0]
    by_segment, by_chat = engine.requests
    assert by_chat.image_key == by_segment.image_key
    same = {"request_id": by_segment.request_id, "image_hw3": by_segment.image_hw3}
    assert vars(replace(by_chat, **same)) == vars(by_segment)
    assert message["content"] == REPLIES[task]


@pytest.mark.parametrize("template", templates("region"))
def test_every_trained_instruction_turns_the_grammar_on(
    client: Any, engine: Any, image64: str, template: str
) -> None:
    text = template.format("the left dog")
    message = complete(client, user(image64, text))["choices"][0]["message"]
    assert engine.requests[0].instruction == text
    assert engine.requests[0].constrained
    assert message["segmentation"]["prompt"] == "the left dog"


def test_any_other_text_is_asked_as_it_is(client: Any, engine: Any, image64: str) -> None:
    text = "  Where is\tthe <|im_end|> dog?\n"
    engine.default = Reply("I see no dog.")
    segmentation = complete(client, user(image64, text))["choices"][0]["message"]["segmentation"]
    request = engine.requests[0]
    assert (request.instruction, request.target, request.constrained) == (text, "text", False)
    assert segmentation["text"] == "I see no dog."
    assert "polygons" not in segmentation


def test_polygons_in_a_free_answer_are_found(client: Any, engine: Any, image64: str) -> None:
    engine.default = Reply(f"The polygon of the dog is {TRIANGLE}")
    message = complete(client, user(image64, "Where is the dog?"))["choices"][0]["message"]
    assert message["content"].startswith("The polygon")
    assert message["segmentation"]["polygons"] == [[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]]


def test_polygons_may_be_asked_for(client: Any, engine: Any, image64: str) -> None:
    shape = {
        "type": "simpleseg_polygons",
        "max_points": 5,
        "return": ["polygons", "rle"],
        "coordinates": "pixel",
    }
    completion = complete(client, user(image64, "the dog?"), response_format=shape)
    request = engine.requests[0]
    assert (request.instruction, request.target, request.constrained) == (
        "the dog?",
        "region",
        True,
    )
    assert request.max_points == 5
    segmentation = completion["choices"][0]["message"]["segmentation"]
    assert segmentation["polygons"] == [[[20.0, 20.0], [100.0, 20.0], [100.0, 90.0]]]
    assert segmentation["rle"]["size"] == [100, 200]


def test_a_stream_in_openais_shape(client: Any, engine: Any, image64: str) -> None:
    plain = complete(client, user(image64))
    data = chunks(client, user(image64))
    assert {one["object"] for one in data} == {"chat.completion.chunk"}
    assert len({one["id"] for one in data}) == 1
    assert data[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert joined(data) == plain["choices"][0]["message"]["content"]
    last = last_of(data)
    assert last["finish_reason"] == "stop"
    assert last["delta"] == {"segmentation": plain["choices"][0]["message"]["segmentation"]}
    assert all("usage" not in one for one in data)


def test_usage_at_the_end_of_a_stream(client: Any, image64: str) -> None:
    plain = complete(client, user(image64), n=2)
    data = chunks(client, user(image64), n=2, stream_options={"include_usage": True})
    assert [one["usage"] for one in data[:-1]] == [None] * (len(data) - 1)
    assert data[-1]["choices"] == []
    assert data[-1]["usage"] == plain["usage"]


@given(st.text(max_size=60), st.integers(1, 9))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_deltas_join_to_the_content(
    client: Any, engine: Any, image64: str, text: str, token_length: int
) -> None:
    engine.default = Reply(text, token_length=token_length)
    data = chunks(client, user(image64))
    (choice,) = complete(client, user(image64))["choices"]
    assert joined(data) == choice["message"]["content"] == text
    assert last_of(data)["delta"]["segmentation"] == choice["message"]["segmentation"]


def test_several_answers_to_one_question(client: Any, engine: Any, image64: str) -> None:
    seeds = (2**63 - 2, 2**63 - 1, 0)
    texts = {seed: f"[[[0.{n}, 0.2], [0.5, 0.2], [0.5, 0.9]]]." for n, seed in enumerate(seeds)}
    engine._script = lambda request: Reply(texts[request.seed])
    options: dict[str, Any] = {"n": 3, "seed": seeds[0], "temperature": 0.7}
    completion = complete(client, user(image64), **options)
    assert [r.seed for r in engine.requests] == list(seeds)
    assert [r.temperature for r in engine.requests] == [0.7] * 3
    contents = [choice["message"]["content"] for choice in completion["choices"]]
    assert contents == list(texts.values())
    assert [choice["index"] for choice in completion["choices"]] == [0, 1, 2]
    assert completion["usage"]["prompt_tokens"] == 16
    data = chunks(client, user(image64), **options)
    assert [joined(data, index) for index in range(3)] == contents
    indices = [last_of(data, index)["delta"]["segmentation"]["index"] for index in range(3)]
    assert indices == [0, 1, 2]


def test_a_seed_alone_is_the_first_of_several(client: Any, engine: Any, image64: str) -> None:
    complete(client, user(image64), seed=7)
    complete(client, user(image64), seed=7, n=2)
    complete(client, user(image64), n=2)
    assert [r.seed for r in engine.requests] == [7, 7, 8, None, None]


def test_logprobs_of_every_token(client: Any, engine: Any, image64: str) -> None:
    engine.default = Reply(TRIANGLE, token_length=7, logprob=math.log(0.25))
    (choice,) = complete(client, user(image64), logprobs=True, top_logprobs=0)["choices"]
    content = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in content) == TRIANGLE
    assert {token["logprob"] for token in content} == {math.log(0.25)}
    assert content[0]["bytes"] == list(TRIANGLE[:7].encode())
    data = chunks(client, user(image64), logprobs=True)
    streamed = [c["logprobs"] for one in data for c in one["choices"] if c["logprobs"]]
    assert [token for one in streamed for token in one["content"]] == content


def test_logprobs_that_json_has_no_number_for(client: Any, engine: Any, image64: str) -> None:
    engine.default = Reply("\ufffd", logprob=-math.inf)
    (choice,) = complete(client, user(image64), logprobs=True)["choices"]
    (token,) = choice["logprobs"]["content"]
    assert (token["logprob"], token["bytes"]) == (-9999.0, None)


def test_an_engine_without_logprobs_refuses_them(make_client: Any, image64: str) -> None:
    with make_client(PhraseEngine(replace(CAPABILITIES, logprobs=False))) as client:
        body = {"messages": [user(image64)], "logprobs": True}
        response = client.post(PATH, json=body)
    assert refusal(response) == (400, "unsupported_value", "logprobs")


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_limit_has_two_names(client: Any, engine: Any, image64: str, name: str) -> None:
    engine.default = Reply(TRIANGLE, finish_reason="length")
    (choice,) = complete(client, user(image64), **{name: 99})["choices"]
    assert engine.requests[0].max_tokens == 99
    assert choice["finish_reason"] == "length"
    assert choice["message"]["segmentation"]["status"] == "truncated"


def test_a_free_answer_may_be_short(client: Any, engine: Any, image64: str) -> None:
    complete(client, user(image64, "Is it a dog?"), max_tokens=1)
    assert engine.requests[0].max_tokens == 1


def test_a_deadline_gives_what_is_finished(client: Any, engine: Any, image64: str) -> None:
    engine.default = Reply(TRIANGLE, fault="hang", fault_after=6)
    (choice,) = complete(client, user(image64), deadline_ms=1000)["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == TRIANGLE[:24]
    assert choice["message"]["segmentation"]["finish_reason"] == "deadline"


def test_a_conversation_reaches_the_engine(client: Any, engine: Any, image64: str) -> None:
    first = complete(client, {"role": "developer", "content": "Be brief."}, user(image64))
    messages = [
        {"role": "developer", "content": "Be brief."},
        user(image64),
        first["choices"][0]["message"],
        {"role": "user", "content": "Locate the polygon of the cat."},
    ]
    complete(client, *messages)
    request = engine.requests[1]
    assert request.instruction == "Locate the polygon of the cat."
    assert request.history == (
        Turn("system", "Be brief."),
        Turn("user", QUESTION, has_image=True),
        Turn("assistant", TRIANGLE),
    )
    assert engine.requests[0].image_key == request.image_key


def test_the_image_may_come_in_any_message_and_after_its_text(
    client: Any, engine: Any, image64: str
) -> None:
    parts = [{"type": "text", "text": "Look:"}, image_part(image64, detail="low")]
    parts += [{"type": "text", "text": "a dog."}]
    complete(
        client,
        {
            "role": "system",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        },
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": parts},
    )
    request = engine.requests[0]
    assert request.instruction == "Look:\na dog."
    assert [turn.has_image for turn in request.history] == [False] * 3
    assert request.history[0] == Turn("system", "a\nb")


@pytest.mark.parametrize("code", ["context_length_exceeded", "conversation_unsupported"])
def test_what_the_model_cannot_read_is_the_clients_fault(
    client: Any, engine: Any, image64: str, code: PromptFault
) -> None:
    def refuse(_: Any) -> Reply:
        raise PromptRefusedError("for the operator alone", code)

    engine._script = refuse
    response = client.post(PATH, json={"messages": [user(image64)]})
    assert refusal(response) == (422, code, None)
    assert "operator" not in response.text


def test_an_engine_that_fails(client: Any, engine: Any, image64: str) -> None:
    engine.default = Reply(TRIANGLE, fault="error")
    for stream in (False, True):
        response = client.post(PATH, json={"messages": [user(image64)], "stream": stream})
        assert refusal(response)[:2] == (503, "engine_unavailable")
        assert response.headers["retry-after"] == "1"


def test_no_choice_is_given_where_one_fails(client: Any, engine: Any, image64: str) -> None:
    engine._script = lambda request: Reply(TRIANGLE, fault="error" if request.seed else None)
    response = client.post(PATH, json={"messages": [user(image64)], "n": 2, "seed": 0})
    assert refusal(response)[:2] == (503, "engine_unavailable")


def test_an_error_after_the_first_token_ends_the_stream(
    client: Any, engine: Any, image64: str
) -> None:
    engine.default = Reply(TRIANGLE, fault="error", fault_after=2)
    *_, last = chunks(client, user(image64))
    assert last["error"]["code"] == "engine_unavailable"


def test_metrics_count_a_chat_as_a_segmentation(client: Any, image64: str) -> None:
    complete(client, user(image64), n=2)
    chunks(client, user(image64))
    text = client.get("/metrics").text
    assert 'simpleseg_parse_total{outcome="ok"} 3.0' in text
    assert f'route="{PATH}"' in text
    assert "simpleseg_in_flight 0.0" in text


def test_cached_tokens_where_all_engines_answers_tell(
    client: Any, engine: Any, image64: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "prompt_tokens_details" not in complete(client, user(image64))["usage"]
    cached = iter([12, 4])
    monkeypatch.setattr(
        scripted, "Usage", lambda *args: replace(Usage(*args), cached_tokens=next(cached))
    )
    details = complete(client, user(image64), n=2)["usage"]["prompt_tokens_details"]
    assert details == {"cached_tokens": 4}


def test_one_model_by_its_id(client: Any) -> None:
    model = client.get("/v1/models/scripted-model").json()
    assert model == client.get("/v1/models").json()["data"][0]
    assert model["capabilities"] == ["segment", "chat"]
    assert refusal(client.get("/v1/models/nobody/nothing"))[:2] == (404, "model_not_found")


def test_a_model_id_may_have_a_slash(make_client: Any) -> None:
    name = "sthui/SimpleSeg-Qwen2.5-VL"
    with make_client(PhraseEngine(replace(CAPABILITIES, model=name))) as client:
        for path in (name, name.replace("/", "%2F")):
            assert client.get(f"/v1/models/{path}").json()["id"] == name
