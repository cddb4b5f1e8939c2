"""The embedded engine when requests are cancelled and when something fails."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simpleseg_server.engines.base import EngineDeadError, EngineError
from simpleseg_server.engines.transformers import TransformersEngine

from .support import (
    Outcome,
    StartEngine,
    answer,
    answers,
    ask,
    count_calls,
    decoder_of,
    fail_once,
    same,
)


@pytest.fixture
def engine(qwen3_checkpoint: Path) -> Iterator[TransformersEngine]:
    """One of its own for tests that break it."""
    engine = TransformersEngine(qwen3_checkpoint, num_threads=1, max_batch=3)
    asyncio.run(engine.start())
    yield engine
    asyncio.run(engine.close())


ENDLESS = ask(1, "text", max_tokens=1800)


def test_closing_the_iterator_frees_the_slot(qwen3_checkpoint: Path) -> None:
    async def run() -> Outcome:
        engine = TransformersEngine(qwen3_checkpoint, num_threads=1, max_batch=1)
        await engine.start()
        steps = count_calls(decoder_of(engine), "_forward")
        async with aclosing(engine.generate(ENDLESS)) as deltas:
            async for _ in deltas:
                break
        seen = len(steps)
        got = await answer(engine, ask(0))
        assert len(steps) <= seen + 1 + got.usage.forward_passes
        await engine.close()
        return got

    same([asyncio.run(run())], [asyncio.run(run())])


def test_a_request_that_waits_can_be_cancelled(engine: TransformersEngine) -> None:
    async def run() -> None:
        async with aclosing(engine.generate(ENDLESS)) as running:
            await anext(running)
            waiting = [asyncio.create_task(answer(engine, ENDLESS)) for _ in range(4)]
            await asyncio.sleep(0.05)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        got = await answer(engine, ask(0))
        assert got.usage.queue_ms < 5000
        while decoder_of(engine).running:  # the last delta comes before the row is given back
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(run(), 30))


def test_close_fails_what_runs_and_what_waits(engine: TransformersEngine) -> None:
    async def run() -> None:
        tasks = [asyncio.create_task(answer(engine, ENDLESS)) for _ in range(5)]
        await asyncio.sleep(0.05)
        await engine.close()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, EngineDeadError)
        with pytest.raises(EngineDeadError):
            engine.check_health()
        with pytest.raises(EngineDeadError):
            await answer(engine, ask(0))
        await engine.close()

    engine.check_health()
    asyncio.run(run())


def test_a_failing_step_fails_its_requests_only(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    [expected] = answers(engine, [ask(0)])
    fail_once(monkeypatch, decoder_of(engine), "_forward", RuntimeError("out of luck"))
    with pytest.raises(EngineError, match="out of luck") as raised:
        answers(engine, [ask(0)])
    assert not isinstance(raised.value, EngineDeadError)
    engine.check_health()
    same(answers(engine, [ask(0)]), [expected])


def test_a_failing_prefill_fails_its_request_only(engine: TransformersEngine) -> None:
    """While another one runs."""
    [expected] = answers(engine, [ask(0)])

    async def run() -> list[Outcome | BaseException]:
        bad = [ask(1, max_tokens=3), ask(2, max_points=1), ask(2, max_tokens=10**6)]
        tasks = [answer(engine, request) for request in [ask(0), *bad]]
        return await asyncio.gather(*tasks, return_exceptions=True)

    good, *bad = asyncio.run(run())
    assert isinstance(good, Outcome)
    same([good], [expected])
    assert all(type(outcome) is EngineError for outcome in bad), bad
    engine.check_health()


class StuckWalk:
    """An answer's walk through a grammar, on which ``method`` fails after some tokens."""

    def __init__(self, walk: Any, method: str) -> None:
        self._walk, self._method, self._taken = walk, method, 0

    def __getattr__(self, name: str) -> Any:
        self._taken += name == "advance"
        if name == self._method and self._taken > 3:
            raise ValueError("token 7 is not allowed here")
        return getattr(self._walk, name)


@pytest.mark.catalogue("C5")
@pytest.mark.parametrize("method", ["advance", "fork"])
def test_a_grammar_that_cannot_go_on_fails_its_request_only(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Where it does not take the model's token, and where nothing can be drafted."""
    expected = answers(engine, [ask(2), ask(3)])
    region = decoder_of(engine)._grammars["region"]
    walk_of, made = region.walk, []

    def walk(budget: Any) -> Any:
        made.append(walk_of(budget))
        return StuckWalk(made[0], method) if len(made) == 1 else made[-1]

    monkeypatch.setattr(region, "walk", walk)

    async def run() -> list[Outcome | BaseException]:
        tasks = [answer(engine, ask(number)) for number in (0, 2, 3)]
        return await asyncio.gather(*tasks, return_exceptions=True)

    stuck, *others = asyncio.run(run())
    assert type(stuck) is EngineError
    same([other for other in others if isinstance(other, Outcome)], expected)
    engine.check_health()


def test_logits_that_are_not_finite_fail_their_request_only(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leave nothing behind in the cache for the next one in that row."""
    expected = answers(engine, [ask(0), ask(2)])
    decoder = decoder_of(engine)
    forward = decoder._forward
    poisoned: list[int] = []

    def poison(fed: Any) -> Any:
        hidden = forward(fed)
        if len(fed) == 2 and not poisoned:
            poisoned.append(1)
            hidden[0] = torch.nan
            for storage in decoder._cache._values:
                storage[0] = torch.nan
        return hidden

    monkeypatch.setattr(decoder, "_forward", poison)

    async def run() -> list[Outcome | BaseException]:
        tasks = [answer(engine, request) for request in [ask(0), ask(2)]]
        return await asyncio.gather(*tasks, return_exceptions=True)

    bad, good = asyncio.run(run())
    assert isinstance(bad, EngineError)
    assert isinstance(good, Outcome)
    same([good], expected[1:])
    same(answers(engine, [ask(0), ask(2)]), expected)


@pytest.mark.parametrize(
    "fault", [SystemExit("bye"), torch.AcceleratorError("device fault")], ids=["exit", "device"]
)
def test_what_ends_the_thread_ends_the_engine(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    fail_once(monkeypatch, decoder_of(engine), "_forward", fault)
    with pytest.raises(EngineError):
        answers(engine, [ask(0)])
    with pytest.raises(EngineDeadError):
        answers(engine, [ask(0)])
    with pytest.raises(EngineDeadError):
        engine.check_health()


def test_start_says_what_cannot_be_loaded(tmp_path: Path) -> None:
    engine = TransformersEngine(tmp_path / "nothing")
    with pytest.raises(EngineError, match="nothing"):
        asyncio.run(engine.start())
    with pytest.raises(EngineDeadError):
        engine.check_health()
    asyncio.run(engine.close())


def test_an_image_that_cannot_be_prepared_is_an_engine_error(
    qwen25_checkpoint: Path, start_engine: StartEngine
) -> None:
    thin = replace(ask(0), image_hw3=np.zeros((2, 1000, 3), np.uint8), image_key="thin")
    engine = start_engine(qwen25_checkpoint)
    with pytest.raises(EngineError, match="aspect ratio"):
        answers(engine, [thin])
    answers(engine, [ask(0)])
