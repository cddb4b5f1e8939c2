"""The chat on the embedded engine: the same answers as the plain route, whole and in pieces."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from simpleseg_polygon.prompts import TARGETS, Target, instruction
from simpleseg_server.engines.transformers import TransformersEngine

from ..asking import answer
from ..chatting import PATH, chunks, complete, joined, last_of, user
from .support import serving

LIMITS = {"region": 320, "box": 128, "point": 64, "text": 24}
OPTIONS: list[dict[str, Any]] = [{}, {"temperature": 0.8, "seed": 5}]


@pytest.fixture(scope="module")
def client(qwen3_checkpoint: Path) -> Iterator[TestClient]:
    engine = TransformersEngine(qwen3_checkpoint, num_threads=1)
    with serving(engine) as client:
        yield client


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("options", OPTIONS, ids=["greedy", "sampled"])
def test_chat_and_segment_answer_alike(
    client: TestClient, image64: str, target: Target, options: dict[str, Any]
) -> None:
    options = {"max_tokens": LIMITS[target], **options}
    asked = {"image": image64, "prompt": "the thing", "task": target, "include": ["raw_text"]}
    plain = answer(client, **asked, **options)
    [result] = plain["results"]
    question = user(image64, instruction(target, "the thing"))
    completion = complete(client, question, logprobs=True, **options)
    (choice,) = completion["choices"]
    assert choice["message"]["content"] == result.pop("raw_text")
    assert choice["message"]["segmentation"] == result
    for name in ("prompt_tokens", "completion_tokens"):
        assert completion["usage"][name] == plain["usage"][name]
    data = chunks(client, question, logprobs=True, **options)
    assert joined(data) == choice["message"]["content"]
    assert last_of(data)["delta"]["segmentation"] == choice["message"]["segmentation"]
    pieces = [c["logprobs"] for one in data for c in one["choices"] if c["logprobs"]]
    assert [t for piece in pieces for t in piece["content"]] == choice["logprobs"]["content"]


def test_several_answers_are_those_of_their_seeds(client: TestClient, image64: str) -> None:
    question = user(image64, instruction("text", "the thing"))
    options: dict[str, Any] = {"temperature": 1.0, "max_tokens": 16}
    together = complete(client, question, n=3, seed=10, **options)
    texts = [choice["message"]["content"] for choice in together["choices"]]
    alone = [complete(client, question, seed=seed, **options) for seed in (10, 11, 12)]
    assert [one["choices"][0]["message"]["content"] for one in alone] == texts
    assert len(set(texts)) == 3


def test_what_was_said_before_matters(client: TestClient, image64: str) -> None:
    question = instruction("text", "the thing")
    first = complete(client, user(image64, question), max_tokens=16)
    message = first["choices"][0]["message"]
    follow_up = {"role": "user", "content": question}
    second = complete(client, user(image64, question), message, follow_up, max_tokens=16)
    assert second["usage"]["prompt_tokens"] > first["usage"]["prompt_tokens"]
    assert second["choices"][0]["message"]["content"] != message["content"]


def test_a_conversation_beyond_the_model(client: TestClient, image64: str) -> None:
    system = {"role": "system", "content": "a b c d " * 5000}
    response = client.post(PATH, json={"messages": [system, user(image64)]})
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "context_length_exceeded"
    complete(client, user(image64))
