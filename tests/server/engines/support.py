"""What the engine tests share: requests, and ways to ask them."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

import simpleseg_server
from simpleseg_polygon.prompts import Target, instruction
from simpleseg_server.app import create_app
from simpleseg_server.config import Settings
from simpleseg_server.engines.base import Engine, GenerationRequest, TokenLogprob, Usage
from simpleseg_server.engines.decoding import Decoder
from simpleseg_server.engines.transformers import TransformersEngine

DEMO_MODEL = Path(simpleseg_server.__file__).parent / "demo_model"
DEMO_PX = 128
"""The one image size of the demo model."""

# Two choices whose log-probabilities are no further apart are a tie.
TIE = 0.01
MOST_TIES = 2

StartEngine = Callable[..., TransformersEngine]

IMAGES = [
    np.random.default_rng(seed).integers(0, 256, (90, 140, 3), dtype=np.uint8) for seed in range(3)
]


def ask(number: int, target: Target = "region", **options: Any) -> GenerationRequest:
    image = number % len(IMAGES)
    settings = {"max_tokens": 320, "max_points": 6} | options
    return GenerationRequest(
        request_id=f"{target} {number}",
        image_hw3=IMAGES[image],
        image_key=f"image {image}",
        instruction=instruction(target, f"the thing {number}"),
        target=target,
        **settings,
    )


@dataclass(frozen=True)
class Outcome:
    text: str
    tokens: tuple[TokenLogprob, ...]
    finish_reason: str
    usage: Usage


async def answer(engine: Engine, request: GenerationRequest) -> Outcome:
    deltas = [delta async for delta in engine.generate(request)]
    last = deltas[-1]
    assert last.finish_reason is not None
    assert last.usage is not None
    assert all(delta.finish_reason is None for delta in deltas[:-1])
    tokens = tuple(token for delta in deltas for token in delta.tokens)
    return Outcome("".join(d.text for d in deltas), tokens, last.finish_reason, last.usage)


def answers(engine: Engine, requests: Sequence[GenerationRequest]) -> list[Outcome]:
    """One after the other."""

    async def run() -> list[Outcome]:
        return [await answer(engine, request) for request in requests]

    return asyncio.run(run())


def same(first: Sequence[Outcome], second: Sequence[Outcome]) -> None:
    for one, other in zip(first, second, strict=True):
        assert one.text == other.text
        assert [t.text for t in one.tokens] == [t.text for t in other.tokens]
        assert [t.logprob for t in one.tokens] == pytest.approx(
            [t.logprob for t in other.tokens], abs=1e-4
        )
        assert one.finish_reason == other.finish_reason
        assert one.usage.completion_tokens == other.usage.completion_tokens


def same_tokens(first: Sequence[Outcome], second: Sequence[Outcome]) -> None:
    """The same tokens in all answers, but for a few that first differ at a tie: there float
    arithmetic of another order chose, and what follows cannot be compared."""
    ties = 0
    for one, other in zip(first, second, strict=True):
        assert one.usage.prompt_tokens == other.usage.prompt_tokens
        tokens = zip(one.tokens, other.tokens, strict=False)
        difference = next(((a, b) for a, b in tokens if a.text != b.text), None)
        if difference is None:
            assert one.text == other.text
            assert one.finish_reason == other.finish_reason
            assert one.usage.completion_tokens == other.usage.completion_tokens
        else:
            ties += 1
            assert difference[0].logprob == pytest.approx(difference[1].logprob, abs=TIE)
    assert ties <= MOST_TIES


def cut_midway(segment_by: Callable[[int], Any], took_ms: float) -> Any:
    """A response to a request whose deadline passed while its answer, which takes about so long,
    was written; a busy machine is not as fast as it was a moment ago, so it is tried again."""
    deadline_ms = took_ms / 3
    for _ in range(10):
        response = segment_by(max(1, int(deadline_ms)))
        if response["usage"]["completion_tokens"] == 0:
            deadline_ms *= 1.5
        elif response["results"][0]["finish_reason"] != "deadline":
            deadline_ms *= 0.7
        else:
            break
    return response


def assert_begins(polygons: Sequence[Any], whole: Sequence[Any]) -> None:
    """``polygons`` are those of ``whole`` up to some vertex; the last may lack vertices."""
    if polygons:
        *finished, last = polygons
        assert finished == whole[: len(finished)]
        assert last == whole[len(finished)][: len(last)]


@contextmanager
def serving(engine: Engine) -> Iterator[TestClient]:
    """A client of a server around the engine, once it is ready."""
    with TestClient(create_app(Settings(), engine)) as client:
        deadline = time.monotonic() + 60
        while client.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield client


def decoder_of(engine: TransformersEngine) -> Decoder:
    assert engine._decoder is not None
    return engine._decoder


def count_calls(owner: object, name: str) -> list[int]:
    """An element for every call of the method from now on."""
    calls: list[int] = []
    original = getattr(owner, name)

    def call(*args: Any) -> Any:
        calls.append(1)
        return original(*args)

    setattr(owner, name, call)
    return calls


def fail_once(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, error: BaseException
) -> None:
    original = getattr(owner, name)
    failed: list[bool] = []

    def call(*args: Any) -> Any:
        if not failed:
            failed.append(True)
            raise error
        return original(*args)

    monkeypatch.setattr(owner, name, call)
