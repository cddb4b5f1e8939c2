"""vLLM and the embedded engine on the shipped model: the same answers, token for token."""

import asyncio

import pytest

from simpleseg_polygon.prompts import instruction
from simpleseg_server.engines.base import Engine, GenerationRequest, Turn
from simpleseg_server.engines.remote import RemoteEngine
from simpleseg_server.engines.transformers import TransformersEngine
from simpleseg_server.engines.vllm import VllmEngine
from simpleseg_server.engines.vllm_backend import VllmOptions
from simpleseg_training.cases import load_cases

from .remote_support import options
from .support import DEMO_MODEL, DEMO_PX, Outcome, answer, same_tokens
from .vllm_process import VllmProcess

SCENES = 16
CONVERSATIONS = 3
# The target of the demo model; a model that was hardly trained may draft worse.
MOST_STEPS_PER_TOKEN = 0.5
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        not (DEMO_MODEL / "config.json").is_file(), reason="this build ships no demo model"
    ),
]


def requests() -> list[GenerationRequest]:
    """One for every scene; the last ones come late in a conversation."""
    cases = load_cases("demo-multi", "test", SCENES, DEMO_PX)
    history = (
        Turn("system", "Answer with polygons only."),
        Turn("user", "Locate the polygon of anything.", has_image=True),
        Turn("assistant", "[[[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]]]."),
    )
    return [
        GenerationRequest(
            request_id=f"scene {number}",
            image_hw3=case.image_hw3,
            image_key=f"scene {number}",
            instruction=instruction("region", case.phrase),
            target="region",
            max_tokens=1024,
            history=history if number >= SCENES - CONVERSATIONS else (),
        )
        for number, case in enumerate(cases)
    ]


async def _answers(engine: Engine) -> tuple[list[Outcome], list[Outcome]]:
    """Every scene alone, then all at once."""
    await engine.start()
    try:
        alone = [await answer(engine, request) for request in requests()]
        together = await asyncio.gather(*(answer(engine, request) for request in requests()))
    finally:
        await engine.close()
    return alone, together


@pytest.fixture(scope="module")
def embedded() -> list[Outcome]:
    alone, together = asyncio.run(_answers(TransformersEngine(DEMO_MODEL, num_threads=1)))
    same_tokens(alone, together)
    return alone


@pytest.fixture(scope="module", params=["plain", "drafting", "remote"])
def vllm(request: pytest.FixtureRequest) -> tuple[str, list[Outcome], list[Outcome]]:
    engine: Engine
    if request.param == "remote":
        upstream: VllmProcess = request.getfixturevalue("demo_upstream")
        engine = RemoteEngine(options(upstream, input_hw=(DEMO_PX, DEMO_PX)))
    else:
        drafts = request.param == "drafting"
        engine = VllmEngine(DEMO_MODEL, VllmOptions(dtype="float32", draft=drafts))
    return request.param, *asyncio.run(_answers(engine))


def test_alone_and_together_they_write_thesame_tokens(
    embedded: list[Outcome], vllm: tuple[str, list[Outcome], list[Outcome]]
) -> None:
    _, alone, together = vllm
    same_tokens(alone, embedded)
    same_tokens(together, embedded)


def test_log_probabilities_are_those_among_the_allowed_tokens(
    embedded: list[Outcome], vllm: tuple[str, list[Outcome], list[Outcome]]
) -> None:
    """Which the embedded engine's are; images are preprocessed by other code, hence the slack."""
    for one, other in zip(vllm[1], embedded, strict=True):
        if one.text == other.text:
            assert [token.logprob for token in one.tokens] == pytest.approx(
                [token.logprob for token in other.tokens], abs=0.02
            )


def test_drafting_saves_steps(vllm: tuple[str, list[Outcome], list[Outcome]]) -> None:
    kind, alone, _ = vllm
    tokens = sum(outcome.usage.completion_tokens for outcome in alone)
    steps = sum(outcome.usage.forward_passes for outcome in alone)
    if kind == "drafting":
        assert steps / tokens <= MOST_STEPS_PER_TOKEN
    elif kind == "remote":  # steps whose output came together count as one
        assert 0 < steps <= tokens - len(alone)
    else:
        assert steps == tokens - len(alone)
