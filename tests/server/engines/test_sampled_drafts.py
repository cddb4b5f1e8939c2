"""Sampled answers have the same distribution with drafts and without.

Answers of two engines, by different seeds, are compared by permutation tests: how often each first
digit and each count of vertices occurs, and how probable the model found its tokens. That a
difference would be found is tested too: by another temperature, and, in vLLM on a CPU, by the mend
of its sampling left out.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from simpleseg_polygon.prompts import instruction
from simpleseg_server.engines.base import Engine, GenerationRequest
from simpleseg_server.engines.transformers import TransformersEngine
from simpleseg_server.engines.vllm import VllmEngine
from simpleseg_server.engines.vllm_backend import VllmOptions
from simpleseg_training.cases import load_cases

from .support import DEMO_MODEL, DEMO_PX, Outcome, StartEngine, answer, answers, ask

PERMUTATIONS = 2000
DIFFERENT = 0.001
"""A p-value that the same distribution gives once in a thousand times: never, by fixed seeds."""
TEMPERATURE = 1.3


def p_values(first: Sequence[Outcome], second: Sequence[Outcome]) -> dict[str, float]:
    return {
        "first digit": p_of_counts([o.text[5:6] for o in first], [o.text[5:6] for o in second]),
        "vertices": p_of_counts([vertices(o) for o in first], [vertices(o) for o in second]),
        "log-probability": p_of_means([surprise(o) for o in first], [surprise(o) for o in second]),
    }


def vertices(outcome: Outcome) -> str:
    return str(outcome.text.count(".") // 2)


def surprise(outcome: Outcome) -> float:
    return float(np.mean([token.logprob for token in outcome.tokens]))


def p_of_counts(first: Sequence[str], second: Sequence[str]) -> float:
    """Of the chi-square of two samples' counts."""
    _, codes = np.unique([*first, *second], return_inverse=True)

    def chi_square(order: NDArray[np.intp]) -> float:
        counts = [np.bincount(c, minlength=codes.max() + 1) for c in split(codes[order], first)]
        total = counts[0] + counts[1]
        expected = total * len(first) / len(codes)
        return float(((counts[0] - expected) ** 2 / expected).sum())

    return p_by_permutation(chi_square, len(codes))


def p_of_means(first: Sequence[float], second: Sequence[float]) -> float:
    values = np.array([*first, *second])

    def apart(order: NDArray[np.intp]) -> float:
        one, other = split(values[order], first)
        return float(abs(one.mean() - other.mean()))

    return p_by_permutation(apart, len(values))


def split(values: NDArray[Any], first: Sequence[object]) -> tuple[NDArray[Any], NDArray[Any]]:
    return values[: len(first)], values[len(first) :]


def p_by_permutation(statistic: Callable[[NDArray[np.intp]], float], count: int) -> float:
    rng = np.random.default_rng(0)
    observed = statistic(np.arange(count))
    permuted = [statistic(rng.permutation(count)) for _ in range(PERMUTATIONS)]
    return float((1 + np.sum(np.array(permuted) >= observed - 1e-9)) / (1 + PERMUTATIONS))


# The embedded engine.

EMBEDDED_COUNT = 120


def sampled(engine: Engine, seeds: range, temperature: float) -> list[Outcome]:
    return answers(engine, [ask(0, temperature=temperature, seed=seed) for seed in seeds])


def test_embedded(qwen3_checkpoint: Path, start_engine: StartEngine) -> None:
    engine = start_engine(qwen3_checkpoint)
    drafted = sampled(engine, range(EMBEDDED_COUNT), 2.0)
    plain = sampled(
        start_engine(qwen3_checkpoint, draft=False), range(1000, 1000 + EMBEDDED_COUNT), 2.0
    )
    accepted = sum(count.accepted for o in drafted for count in o.usage.drafts)
    assert accepted > EMBEDDED_COUNT
    assert min(p_values(drafted, plain).values()) > DIFFERENT
    cooler = sampled(engine, range(2000, 2000 + EMBEDDED_COUNT), 0.5)
    assert min(p_values(cooler, plain).values()) <= DIFFERENT


# vLLM.

VLLM_COUNT = 256
needs_demo_model = pytest.mark.skipif(
    not (DEMO_MODEL / "config.json").is_file(), reason="this build ships no demo model"
)


async def _at_once(engine: Engine, first_seed: int) -> list[Outcome]:
    [case] = load_cases("demo-multi", "test", 1, DEMO_PX)
    requests = [
        GenerationRequest(
            request_id=f"seed {seed}",
            image_hw3=case.image_hw3,
            image_key="scene",
            instruction=instruction("region", case.phrase),
            target="region",
            max_tokens=220,
            max_points=12,
            temperature=TEMPERATURE,
            seed=seed,
        )
        for seed in range(first_seed, first_seed + VLLM_COUNT)
    ]
    await engine.start()
    try:
        return list(await asyncio.gather(*(answer(engine, request) for request in requests)))
    finally:
        await engine.close()


@pytest.fixture(scope="module")
def plain() -> list[Outcome]:
    """Of the embedded engine, which computes the same probabilities."""
    engine = TransformersEngine(DEMO_MODEL, num_threads=1, draft=False)
    return asyncio.run(_at_once(engine, 0))


def in_vllm() -> list[Outcome]:
    return asyncio.run(_at_once(VllmEngine(DEMO_MODEL, VllmOptions(dtype="float32")), 10_000))


@pytest.mark.vllm
@needs_demo_model
def test_vllm(plain: list[Outcome]) -> None:
    drafted = in_vllm()
    steps = sum(o.usage.forward_passes for o in drafted)
    assert steps < 0.8 * sum(o.usage.completion_tokens for o in drafted)
    p = p_values(drafted, plain)
    print(p)
    assert min(p.values()) > DIFFERENT


@pytest.mark.vllm
@needs_demo_model
def test_vllm_unmended_is_noticed(plain: list[Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    from simpleseg_server.engines import vllm_compat

    if vllm_compat._spreads_over_drafts():
        pytest.skip("this vLLM needs no mend")
    monkeypatch.setattr(vllm_compat, "DRAFTER", "tests.server.engines.unmended.UnmendedProposer")
    p = p_values(in_vllm(), plain)
    print(p)
    assert min(p.values()) <= DIFFERENT
