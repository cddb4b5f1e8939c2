"""The shipped model on the shipped samples and on held-out scenes."""

import asyncio
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

import pytest

import simpleseg_server
from simpleseg_polygon.codec import parse_region
from simpleseg_polygon.geometry import ImageSize
from simpleseg_polygon.metrics import iou
from simpleseg_polygon.prompts import instruction
from simpleseg_polygon.raster import region_to_mask
from simpleseg_server.engines.base import GenerationRequest
from simpleseg_server.engines.transformers import TransformersEngine
from simpleseg_training.cases import Case, load_cases

from .support import Outcome, answers

DEMO_MODEL = Path(simpleseg_server.__file__).parent / "demo_model"
SAMPLES = Path(__file__).parents[3] / "examples/images"
FORWARD_PASSES_TARGET = 2.4  # tokens per pass; structure alone gives about 2.2


@pytest.fixture(scope="module")
def drafting() -> Iterator[TransformersEngine]:
    yield from started(draft=True)


@pytest.fixture(scope="module")
def plain() -> Iterator[TransformersEngine]:
    yield from started(draft=False)


def started(*, draft: bool) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(DEMO_MODEL, draft=draft)
    asyncio.run(engine.start())
    yield engine
    asyncio.run(engine.close())


def ask(cases: Sequence[Case], engine: TransformersEngine) -> list[Outcome]:
    requests = [
        GenerationRequest(
            request_id=str(i),
            image_hw3=case.image_hw3,
            image_key=blake2b(case.image_hw3.tobytes()).hexdigest(),
            instruction=instruction("region", case.phrase),
            target="region",
            max_tokens=1024,
        )
        for i, case in enumerate(cases)
    ]
    return answers(engine, requests)


def tokens_per_pass(outcomes: Sequence[Outcome]) -> float:
    tokens = sum(outcome.usage.completion_tokens for outcome in outcomes)
    return tokens / sum(outcome.usage.forward_passes for outcome in outcomes)


def test_samples_are_segmented(drafting: TransformersEngine) -> None:
    cases = load_cases(str(SAMPLES), "test", 100, 0)
    ious = []
    for case, outcome in zip(cases, ask(cases, drafting), strict=True):
        mask = region_to_mask(parse_region(outcome.text).value, ImageSize(*case.mask_hw.shape))
        ious.append(iou(mask, case.mask_hw))
    assert sum(ious) / len(ious) > 0.5, ious


def test_drafts_save_passes_and_change_nothing(
    drafting: TransformersEngine, plain: TransformersEngine
) -> None:
    cases = load_cases("demo-multi", "test", 12, 128)
    fast, slow = ask(cases, drafting), ask(cases, plain)
    assert [outcome.text for outcome in fast] == [outcome.text for outcome in slow]
    assert tokens_per_pass(fast) > FORWARD_PASSES_TARGET
    assert tokens_per_pass(slow) < 1.1
