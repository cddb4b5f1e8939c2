"""Prompts on one image: what the embedded engine reads once, and that no answer changes by it."""

import asyncio
import gc
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simpleseg_polygon.prompts import Target
from simpleseg_server.engines.base import EngineError, GenerationRequest, Turn
from simpleseg_server.engines.checkpoint import ImageFeatures
from simpleseg_server.engines.image_cache import ImageCache, ReadPrompt
from simpleseg_server.engines.kv_rows import KeyValueRows, RowStates
from simpleseg_server.engines.transformers import TransformersEngine

from ..asking import answer as segment
from ..chatting import complete, user
from .support import (
    Outcome,
    answer,
    answers,
    ask,
    count_calls,
    decoder_of,
    fail_once,
    same,
    serving,
)

SYSTEM = Turn("system", "Answer with polygons only.")
SHOWN = Turn("user", "Is there a dog?", has_image=True)
LONG = Turn("assistant", "Yes, there is. " * 8)
HISTORIES = [(), (SYSTEM,), (SHOWN, LONG), (SYSTEM, SHOWN, LONG, Turn("user", "Sure?"))]
FEW_BYTES = 300_000
"""Of keys and values: those of a few prompts."""
LENGTHS: dict[Target, int] = {"region": 96, "box": 64, "point": 48, "text": 6}


@dataclass(frozen=True)
class Asked:
    """A request, and after how many deltas whoever asks leaves."""

    request: GenerationRequest
    leaves_after: int | None


@st.composite
def asked(draw: st.DrawFn) -> Asked:
    target = draw(st.sampled_from(sorted(LENGTHS)))
    number = draw(st.integers(0, 5))
    request = ask(
        number,
        target,
        max_tokens=LENGTHS[target],
        max_points=3,
        history=draw(st.sampled_from(HISTORIES)),
        temperature=draw(st.sampled_from([0.0, 0.0, 1.5])),
        seed=number,
    )
    return Asked(request, draw(st.sampled_from([None, None, None, 0, 1, 3])))


@dataclass(frozen=True)
class Pair:
    """An engine that keeps what it read of few images, one that keeps nothing, and their loop."""

    keeping: TransformersEngine
    forgetting: TransformersEngine
    runner: asyncio.Runner

    def ask(self, *requests: GenerationRequest) -> list[Outcome]:
        return self.runner.run(_one_by_one(self.forgetting, requests))

    def ask_together(self, batch: Sequence[Asked]) -> list[Outcome | None]:
        async def together() -> list[Outcome | None]:
            return await asyncio.gather(*(_leaving(self.keeping, one) for one in batch))

        return self.runner.run(asyncio.wait_for(together(), 60))


async def _one_by_one(
    engine: TransformersEngine, requests: Sequence[GenerationRequest]
) -> list[Outcome]:
    return [await answer(engine, request) for request in requests]


async def _leaving(engine: TransformersEngine, asked: Asked) -> Outcome | None:
    if asked.leaves_after is None:
        return await answer(engine, asked.request)
    async with aclosing(engine.generate(asked.request)) as deltas:
        for _ in range(asked.leaves_after):
            await anext(deltas, None)
    return None


@pytest.fixture(scope="module", params=["qwen3_checkpoint", "qwen25_checkpoint"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    path: Path = request.getfixturevalue(request.param)
    with asyncio.Runner() as runner:
        keeping = TransformersEngine(
            path, num_threads=1, max_batch=3, image_cache_size=2, prompt_cache_bytes=FEW_BYTES
        )
        forgetting = TransformersEngine(path, num_threads=1, prompt_cache_bytes=0)
        for engine in (keeping, forgetting):
            runner.run(engine.start())
        yield Pair(keeping, forgetting, runner)
        for engine in (keeping, forgetting):
            runner.run(engine.close())


@settings(max_examples=25, deadline=None)
@given(batch=st.lists(asked(), min_size=1, max_size=6))
def test_reuse_changes_no_token(pair: Pair, batch: list[Asked]) -> None:
    """Whatever images, tasks and conversations come together, leave, or push others out."""
    outcomes = pair.ask_together(batch)
    stayed = [(o, a.request) for o, a in zip(outcomes, batch, strict=True) if o is not None]
    alone = pair.ask(*(request for _, request in stayed))
    same([outcome for outcome, _ in stayed], alone)
    assert all(outcome.usage.cached_tokens == 0 for outcome in alone)
    assert decoder_of(pair.keeping).images.prompt_bytes <= FEW_BYTES


@pytest.fixture
def engine(qwen3_checkpoint: Path) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(qwen3_checkpoint, num_threads=1)
    asyncio.run(engine.start())
    yield engine
    asyncio.run(engine.close())


def test_the_second_prompt_on_an_image_reads_only_what_is_its_own(
    engine: TransformersEngine,
) -> None:
    decoder = decoder_of(engine)
    first, second, again, other = answers(engine, [ask(0), ask(3), ask(3), ask(0, "text")])
    ids = [decoder.checkpoint.prompt_ids(ask(n).instruction, 4) for n in (0, 3)]
    alike = next(i for i, (a, b) in enumerate(zip(*ids, strict=True)) if a != b)
    assert first.usage.cached_tokens == 0
    assert second.usage.cached_tokens == again.usage.cached_tokens == alike
    assert other.usage.cached_tokens == decoder.checkpoint.image_end(ids[0]) + 1
    assert all(o.usage.prefill_ms > 0 for o in (first, second, again, other))


def test_the_same_prompt_again_reads_one_token(engine: TransformersEngine) -> None:
    first, again = answers(engine, [ask(0), ask(0)])
    same([first], [again])
    assert again.usage.cached_tokens == again.usage.prompt_tokens - 1


def test_another_image_or_another_beginning_shares_nothing(engine: TransformersEngine) -> None:
    told = replace(ask(0), history=(SYSTEM,))
    outcomes = answers(engine, [ask(0), ask(1), told, told])
    cached = [outcome.usage.cached_tokens for outcome in outcomes]
    assert cached == [0, 0, 0, outcomes[3].usage.prompt_tokens - 1]


def test_prompts_that_come_together_cost_one_whole_reading(engine: TransformersEngine) -> None:
    """The image's patches, the vision tower and the prompt's beginning once; the others' rests in
    the step in which the first writes its second token."""
    decoder = decoder_of(engine)
    counted = {
        name: count_calls(owner, name)
        for owner, name in [
            (decoder.checkpoint, "patches"),
            (decoder.checkpoint, "encode_image"),
            (decoder, "_read_prompt"),
            (decoder, "_read_rest"),
            (decoder, "_forward"),
        ]
    }
    requests = [replace(ask(0), instruction=ask(n).instruction) for n in range(6)]

    async def together() -> list[Outcome]:
        return await asyncio.gather(*(answer(engine, request) for request in requests))

    outcomes = asyncio.run(together())
    calls = {name: len(found) for name, found in counted.items()}
    assert calls["patches"] == calls["encode_image"] == calls["_read_prompt"] == 1
    assert calls["_read_rest"] == 0
    # At most one step more than the longest answer for each turn that some came late.
    assert calls["_forward"] <= max(o.usage.forward_passes for o in outcomes) + len(requests)
    assert calls["_forward"] < sum(o.usage.forward_passes for o in outcomes) / 2
    same(answers(engine, requests), outcomes)


def test_the_prompts_of_one_request_run_together(qwen3_checkpoint: Path, image64: str) -> None:
    """Through the whole server: one reading of the image, and steps that they share."""
    engine = TransformersEngine(qwen3_checkpoint, num_threads=1)
    with serving(engine) as client:
        decoder = decoder_of(engine)
        whole, steps = (count_calls(decoder, name) for name in ("_read_prompt", "_forward"))
        asked = {"image": image64, "prompts": [f"the thing {n}" for n in range(6)], "max_points": 6}
        usage = segment(client, **asked, max_tokens=320)["usage"]
        assert len(whole) == 1
        assert len(steps) < usage["forward_passes"] / 2


def test_a_chat_tells_how_much_of_it_had_been_read(qwen3_checkpoint: Path, image64: str) -> None:
    with serving(TransformersEngine(qwen3_checkpoint, num_threads=1)) as client:
        first, again = (
            complete(client, user(image64, "Locate the box of the dog."))["usage"] for _ in range(2)
        )
    assert first["prompt_tokens_details"] == {"cached_tokens": 0}
    assert again["prompt_tokens_details"] == {"cached_tokens": again["prompt_tokens"] - 1}


def test_hits_and_misses_are_counted(qwen3_checkpoint: Path, image64: str) -> None:
    """As the usage of an answer tells them, and as metrics."""
    with serving(TransformersEngine(qwen3_checkpoint, num_threads=1)) as client:

        def counts() -> dict[str, float]:
            lines = client.get("/metrics").text.splitlines()
            found = [line.rpartition(" ") for line in lines if "engine_cache_total{" in line]
            return {name: float(count) for name, _, count in found}

        before = counts()
        asked = {"image": image64, "prompts": ["a", "b"], "max_points": 6, "max_tokens": 320}
        usages = [segment(client, **asked)["usage"] for _ in range(2)]
        new = {name: count - before[name] for name, count in counts().items()}
    name = 'simpleseg_engine_cache_total{{kind="{}",outcome="{}"}}'
    for kind in ("image", "prompt"):
        assert new[name.format(kind, "miss")] == 1
        assert new[name.format(kind, "hit")] == 3
    first, second = usages
    assert 0 < first["cached_tokens"] < second["cached_tokens"] < second["prompt_tokens"]


def test_a_long_rest_is_read_apart(engine: TransformersEngine) -> None:
    """So that the others' rows are not padded to its length."""
    told = replace(ask(0), history=(SHOWN, LONG))
    read_apart = count_calls(decoder_of(engine), "_read_rest")
    _, outcome = answers(engine, [replace(told, history=(SHOWN,)), told])
    assert len(read_apart) == 1
    assert outcome.usage.cached_tokens is not None
    assert outcome.usage.prompt_tokens > outcome.usage.cached_tokens > 0


def test_who_leaves_while_the_image_is_prepared_takes_it_from_no_one(
    engine: TransformersEngine,
) -> None:
    async def run() -> Outcome:
        leaving, staying = (asyncio.create_task(answer(engine, ask(0))) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        return await staying

    assert asyncio.run(run()).finish_reason


def test_an_image_that_no_one_waits_for_may_fail(qwen25_checkpoint: Path) -> None:
    engine = TransformersEngine(qwen25_checkpoint, num_threads=1)
    thin = replace(ask(0), image_hw3=np.zeros((2, 1000, 3), np.uint8), image_key="thin")
    complaints: list[Any] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))
        await engine.start()
        lonely = asyncio.create_task(answer(engine, thin))
        await asyncio.sleep(0)
        lonely.cancel()
        with pytest.raises(EngineError, match="aspect ratio"):
            await answer(engine, replace(thin, image_key="as thin"))
        await engine.close()

    asyncio.run(run())
    gc.collect()  # where an error that no one has seen would be told
    assert not complaints


def test_a_failing_first_reading_is_not_kept(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    [expected] = answers(engine, [replace(ask(0), image_key="before")])
    fail_once(monkeypatch, decoder_of(engine), "_read_prompt", RuntimeError("out of luck"))
    with pytest.raises(EngineError, match="out of luck"):
        answers(engine, [ask(0)])
    [outcome, again] = answers(engine, [ask(0), ask(0)])
    assert outcome.usage.cached_tokens == 0
    same([outcome, again], [expected, expected])


def test_a_step_that_fails_leaves_what_was_kept(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answers(engine, [ask(0), ask(3)])
    fail_once(monkeypatch, decoder_of(engine), "_forward", RuntimeError("out of luck"))
    with pytest.raises(EngineError, match="out of luck"):
        answers(engine, [ask(3)])
    [outcome] = answers(engine, [ask(3)])
    assert outcome.usage.cached_tokens
    same([outcome], expected[1:])


# The parts.


def features(size: int = 1) -> ImageFeatures:
    return ImageFeatures(None, torch.full((1, 3), size))


def read(ids: Sequence[int], nbytes: int = 8) -> ReadPrompt:
    states = torch.zeros(1, len(ids), nbytes // 2, dtype=torch.int8)
    return ReadPrompt(ids, RowStates((states[:, :1],), (states[:, :1],)), 0)


@given(
    first=st.lists(st.integers(0, 2), min_size=1, max_size=6),
    second=st.lists(st.integers(0, 2), min_size=1, max_size=6),
)
def test_shared_is_the_longest_common_beginning(first: list[int], second: list[int]) -> None:
    shared = read(first).shared(second)
    assert shared < len(second)
    assert first[:shared] == second[:shared]
    assert shared == min(len(first), len(second) - 1) or first[shared] != second[shared]


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 2), st.sampled_from([8, 24, 200])), max_size=30
    )
)
def test_the_image_cache_keeps_to_its_bounds(steps: list[tuple[int, int, int]]) -> None:
    cache = ImageCache(3, 100)
    used: list[str] = []
    for number, beginning, nbytes in steps:
        key = str(number)
        image = cache.get(key) or cache.put(key, features())
        cache.keep(image, (beginning,), read([beginning], nbytes))
        used = [*(k for k in used if k != key), key][-3:]
        assert cache.prompt_bytes <= 100
        assert [k for k in map(str, range(5)) if k in cache] == sorted(used)
        assert cache.holds_prompt(key) == bool(image.prompts)
        assert nbytes > 100 or (beginning,) in image.prompts  # the newest stays


def test_prompts_of_images_used_longest_ago_go_first() -> None:
    cache = ImageCache(9, 24)
    for key in "abc":
        cache.keep(cache.put(key, features()), (), read([1]))
    cache.get("a")
    cache.keep(cache.put("d", features()), (), read([1]))
    assert [cache.holds_prompt(key) for key in "abcd"] == [True, False, True, True]
    assert all(key in cache for key in "abcd")  # their features stay


def test_a_copied_row_comes_back_wherever_it_is_put() -> None:
    rows = KeyValueRows()
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(1, 2, 5, 4, generator=generator) for _ in range(2)]
    rows.place(0, torch.arange(5)[None], 5)
    seen = [rows.update(states[layer], -states[layer], layer) for layer in range(2)]
    copy = rows.copy(0, 3)
    assert copy.nbytes == 2 * 2 * (2 * 3 * 4) * 4
    rows.clear()
    rows.paste(6, copy, 2)
    rows.place(6, torch.tensor([[2, 3]]), 4)
    for layer in range(2):
        new = torch.ones(1, 2, 2, 4)
        keys, values = rows.update(new, new, layer)
        assert torch.equal(keys[:, :, :2], seen[layer][0][:, :, :2])
        assert torch.equal(values[:, :, :2], seen[layer][1][:, :, :2])
        assert torch.equal(keys[:, :, 2:], new)
