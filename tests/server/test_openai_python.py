"""The real ``openai`` package against a real server."""

import asyncio
import socket
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from simpleseg_server.engines.scripted import Reply

from .chatting import QUESTION, image_part
from .conftest import TRIANGLE


@pytest.fixture
def base_url(engine: Any, serve_on_socket: Any) -> Iterator[str]:
    engine.default = Reply(TRIANGLE, token_length=3)
    with serve_on_socket(engine) as url:
        _wait_until(lambda: engine._started)
        yield f"{url}/v1"


@pytest.fixture
def client(base_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=base_url, api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
def messages(image64: str) -> Any:
    parts = [{"type": "text", "text": QUESTION}, image_part(image64, detail="high")]
    return [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": parts}]


def _wait_until(condition: Any, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def test_models(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "scripted-model"
    assert client.models.retrieve(model.id) == model
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nobody")
    assert caught.value.code == "model_not_found"


def test_plain(client: OpenAI, messages: Any) -> None:
    completion = client.chat.completions.create(model="scripted-model", messages=messages)
    (choice,) = completion.choices
    assert choice.message.content == TRIANGLE
    assert choice.finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == 16
    extra = choice.message.model_extra
    assert extra is not None
    assert extra["segmentation"]["polygons"] == [[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]]
    assert completion._request_id is not None
    assert completion._request_id.startswith("req_")


def test_several_answers_with_logprobs(client: OpenAI, engine: Any, messages: Any) -> None:
    completion = client.chat.completions.create(
        model="scripted-model", messages=messages, n=3, seed=4, temperature=0.5, logprobs=True
    )
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    assert sorted(request.seed for request in engine.requests) == [4, 5, 6]
    for choice in completion.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert "".join(token.token for token in choice.logprobs.content) == TRIANGLE


def test_stream(client: OpenAI, messages: Any) -> None:
    stream = client.chat.completions.create(
        model="scripted-model",
        messages=messages,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == TRIANGLE
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens > 16
    last = chunks[-2].choices[0]
    assert last.finish_reason == "stop"
    assert last.delta.model_extra is not None
    assert last.delta.model_extra["segmentation"]["status"] == "ok"


def test_the_stream_helper_builds_the_plain_answer(client: OpenAI, messages: Any) -> None:
    plain = client.chat.completions.create(model="scripted-model", messages=messages)
    with client.chat.completions.stream(model="scripted-model", messages=messages) as stream:
        stream.until_done()
        message = stream.get_final_completion().choices[0].message
    assert message.content == plain.choices[0].message.content
    assert message.model_extra == plain.choices[0].message.model_extra


def test_a_conversation_by_appending_the_answer(client: OpenAI, engine: Any, messages: Any) -> None:
    first = client.chat.completions.create(model="scripted-model", messages=messages)
    messages.append(first.choices[0].message)
    messages.append({"role": "user", "content": "Locate the polygon of the cat."})
    client.chat.completions.create(model="scripted-model", messages=messages)
    assert [turn.role for turn in engine.requests[1].history] == ["system", "user", "assistant"]
    assert engine.requests[1].history[-1].text == TRIANGLE


def test_polygons_by_the_extension(client: OpenAI, engine: Any, image64: str) -> None:
    parts = [image_part(image64), {"type": "text", "text": "dog"}]
    messages: Any = [{"role": "user", "content": parts}]
    shape: Any = {"type": "simpleseg_polygons", "max_points": 9}
    client.chat.completions.create(model="scripted-model", messages=messages, response_format=shape)
    assert (engine.requests[0].constrained, engine.requests[0].max_points) == (True, 9)


def test_async(base_url: str, messages: Any) -> None:
    async def ask() -> tuple[list[str | None], str]:
        async with AsyncOpenAI(base_url=base_url, api_key="unused", max_retries=0) as client:
            create = client.chat.completions.create
            plain = [create(model="scripted-model", messages=messages) for _ in range(3)]
            contents = [one.choices[0].message.content for one in await asyncio.gather(*plain)]
            text = ""
            stream = await create(model="scripted-model", messages=messages, stream=True)
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
        return contents, text

    contents, text = asyncio.run(ask())
    assert contents == [TRIANGLE] * 3
    assert text == TRIANGLE


def test_refusals_are_typed_and_name_the_field(client: OpenAI, messages: Any) -> None:
    create: Any = client.chat.completions.create
    with pytest.raises(openai.BadRequestError) as caught:
        create(model="scripted-model", messages=messages, extra_body={"guided_json": {}})
    error = caught.value
    assert (error.code, error.param) == ("unknown_parameter", "guided_json")
    assert error.type == "invalid_request_error"
    assert error.request_id is not None
    assert error.request_id.startswith("req_")
    assert "unknown parameter" in error.message
    with pytest.raises(openai.BadRequestError) as caught:
        create(model="scripted-model", messages=messages, stop=["]"])
    assert (caught.value.code, caught.value.param) == ("unsupported_value", "stop")
    with pytest.raises(openai.NotFoundError):
        create(model="gpt-5", messages=messages)
    with pytest.raises(openai.UnprocessableEntityError) as unprocessable:
        create(model="scripted-model", messages=[*messages, messages[1]])
    assert unprocessable.value.code == "too_many_images"


def test_parsing_to_a_type_needs_a_grammar_of_the_client(client: OpenAI, messages: Any) -> None:
    from pydantic import BaseModel

    class Answer(BaseModel):
        name: str

    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.parse(
            model="scripted-model", messages=messages, response_format=Answer
        )
    assert (caught.value.code, caught.value.param) == ("parameter_not_allowed", "response_format")


def test_an_engine_that_fails_is_tried_again(base_url: str, engine: Any, messages: Any) -> None:
    replies = iter([Reply(TRIANGLE, fault="error"), Reply(TRIANGLE)])
    engine._script = lambda _: next(replies)
    with OpenAI(base_url=base_url, api_key="unused", max_retries=1) as client:
        began = time.monotonic()
        completion = client.chat.completions.create(model="scripted-model", messages=messages)
        waited = time.monotonic() - began
    assert completion.choices[0].message.content == TRIANGLE
    assert len(engine.requests) == 2
    assert waited >= 1.0  # what Retry-After says


def test_an_error_within_a_stream(client: OpenAI, engine: Any, messages: Any) -> None:
    engine.default = Reply(TRIANGLE, fault="error", fault_after=3)
    stream = client.chat.completions.create(model="scripted-model", messages=messages, stream=True)
    heard = (chunk.choices[0].delta.content or "" for chunk in stream)
    assert "".join(next(heard) for _ in range(4)) == TRIANGLE[:12]  # the first one has the role
    with pytest.raises(openai.APIError) as caught:
        next(heard)
    assert caught.value.code == "engine_unavailable"


def test_closing_a_stream_frees_the_engine(client: OpenAI, engine: Any, messages: Any) -> None:
    engine.default = Reply(TRIANGLE, fault="hang", fault_after=2)
    stream = client.chat.completions.create(
        model="scripted-model", messages=messages, stream=True, n=2
    )
    next(iter(stream))
    stream.close()
    _wait_until(lambda: engine.running == 0 and len(engine.cancelled) == 2)


def test_a_timeout_frees_the_engine(client: OpenAI, engine: Any, messages: Any) -> None:
    engine.default = Reply(TRIANGLE, fault="hang")
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model="scripted-model", messages=messages, timeout=0.5)
    _wait_until(lambda: engine.running == 0 and len(engine.cancelled) == 1)


def test_no_server() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0)
        with client, pytest.raises(openai.APIConnectionError):
            client.models.list()
