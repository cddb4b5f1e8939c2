"""The loading path of both published architectures: tokenizer, processor, weights, answers.

The weights are random, for the published ones cannot be had here; an answer says nothing, but it
keeps to the grammar, whatever the weights want.
"""

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from simpleseg_polygon.codec import parse
from simpleseg_polygon.grammar import Budget, regex
from simpleseg_polygon.prompts import TARGETS, Target
from simpleseg_server.engines.base import Engine, EngineError, GenerationRequest
from simpleseg_server.engines.transformers import TransformersEngine
from simpleseg_server.engines.vllm import VllmEngine
from simpleseg_server.engines.vllm_backend import VllmOptions

from . import random_models
from .support import IMAGES, Outcome, answer, ask

VLLM = pytest.mark.vllm


@pytest.fixture(
    scope="module",
    params=[
        "qwen25-embedded",
        pytest.param("qwen25-vllm", marks=VLLM),
        pytest.param("kimi_vl-vllm", marks=VLLM),
    ],
)
def started(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator["Started"]:
    architecture, kind = request.param.split("-")
    folder = tmp_path_factory.mktemp(architecture)
    getattr(random_models, architecture)(folder)
    options = VllmOptions(
        dtype="float32",
        max_model_len=2048,
        max_num_seqs=4,
        trust_remote_code=architecture == "kimi_vl",
    )
    engine: Engine = (
        TransformersEngine(folder, num_threads=1)
        if kind == "embedded"
        else VllmEngine(folder, options)
    )
    with asyncio.Runner() as runner:
        runner.run(engine.start())
        yield Started(architecture, folder, engine, runner)
        runner.run(engine.close())


@dataclass(frozen=True)
class Started:
    """An engine with its weights loaded, on the event loop that it lives on."""

    architecture: str
    folder: Path
    engine: Engine
    runner: asyncio.Runner

    def ask(self, *requests: GenerationRequest) -> list[Outcome]:
        async def together() -> list[Outcome]:
            return await asyncio.gather(*(answer(self.engine, one) for one in requests))

        return self.runner.run(together())


@pytest.mark.parametrize("target", ["region", "box", "point"])
def test_answers_of_random_weights_keep_to_the_grammar(started: Started, target: Target) -> None:
    settings = {"max_tokens": 120, "max_points": None}
    requests = [ask(n, target, temperature=n / 4, seed=n, **settings) for n in range(5)]
    language = re.compile(regex(target, Budget(10**4, min_points=1)))
    for outcome in started.ask(*requests):
        assert language.fullmatch(outcome.text), outcome.text
        parsed = parse(outcome.text, target)
        # Random weights repeat points, and a part needs three that differ: no grammar asks for it.
        too_small = [warning.code for warning in parsed.warnings] == ["part_too_small"]
        assert parsed.status in ("ok", "empty") or too_small, outcome.text
        assert outcome.usage.completion_tokens <= 120
        assert outcome.usage.prompt_tokens > 12  # the picture's are among them


def test_weights_decide_the_answer(started: Started) -> None:
    """Prompt and picture reach the model: what it thinks of greedy answers differs with both, and
    with nothing else that runs."""
    same, again, other_phrase, other_image = started.ask(
        ask(0),
        ask(0),
        replace(ask(0), instruction="Say something else altogether."),
        replace(ask(0), image_hw3=np.zeros_like(IMAGES[0]), image_key="black"),
    )
    [alone] = started.ask(ask(0))
    for other in (again, alone):
        assert same.text == other.text
        assert _likings(same) == pytest.approx(_likings(other), abs=1e-3)
    liking = [o.tokens[0].logprob for o in (same, other_phrase, other_image)]
    assert min(abs(liking[0] - liking[1]), abs(liking[0] - liking[2])) > 1e-3


def _likings(outcome: Outcome) -> list[float]:
    return [token.logprob for token in outcome.tokens]


@pytest.mark.vllm
def test_vllm_answers_as_the_embedded_engine_does(started: Started) -> None:
    """The processor's file names no mean and deviation, which vLLM 0.32 by itself would leave out,
    and no picture is of a size that needs no scaling."""
    if started.architecture == "kimi_vl":
        pytest.skip("transformers 5.19 has no Kimi-VL")
    embedded = TransformersEngine(started.folder, num_threads=1)
    asked = [ask(n, target) for n in range(3) for target in TARGETS if target != "text"]
    started.runner.run(embedded.start())
    expected = Started(started.architecture, started.folder, embedded, started.runner).ask(*asked)
    started.runner.run(embedded.close())
    for one, other in zip(started.ask(*asked), expected, strict=True):
        assert one.text == other.text
        assert _likings(one) == pytest.approx(_likings(other), abs=0.01)


def test_free_text_ends_with_the_turn_or_the_budget(started: Started) -> None:
    [outcome] = started.ask(ask(0, "text", max_tokens=24))
    assert outcome.usage.completion_tokens <= 24
    assert outcome.finish_reason in ("stop", "length")


def test_the_embedded_engine_names_the_other_one_for_kimi_vl(tmp_path: Path) -> None:
    """transformers 5.19 has no Kimi-VL of its own."""
    random_models.kimi_vl(tmp_path)
    engine = TransformersEngine(tmp_path)
    with pytest.raises(EngineError, match="--engine vllm"):
        asyncio.run(engine.start())
    asyncio.run(engine.close())
