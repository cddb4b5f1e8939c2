"""The scripted engine keeps the Engine protocol, faults included."""

import asyncio
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest

from simpleseg_server.engines.base import (
    Capabilities,
    Delta,
    Engine,
    EngineDeadError,
    EngineError,
    GenerationRequest,
)
from simpleseg_server.engines.scripted import Reply, ScriptedEngine

SQUARE = "[[[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]]]"


def ask(name: str = "a") -> GenerationRequest:
    image = np.zeros((4, 4, 3), np.uint8)
    return GenerationRequest(name, image, "key", f"Output {name}", "region", max_tokens=64)


async def deltas(engine: Engine, request: GenerationRequest) -> list[Delta]:
    return [delta async for delta in engine.generate(request)]


async def text(engine: Engine, request: GenerationRequest) -> str:
    return "".join(delta.text for delta in await deltas(engine, request))


async def started(*args: Any, **kwargs: Any) -> ScriptedEngine:
    engine = ScriptedEngine(*args, **kwargs)
    await engine.start()
    return engine


def test_answers_in_turn_and_repeats_the_last() -> None:
    async def run() -> list[str]:
        engine = await started([SQUARE, Reply("[]", token_length=1)])
        return [await text(engine, ask(name)) for name in "abc"]

    assert asyncio.run(run()) == [SQUARE, "[]", "[]"]


def test_a_function_sees_the_request() -> None:
    async def run() -> str:
        return await text(await started(lambda request: request.instruction), ask("the dog"))

    assert asyncio.run(run()) == "Output the dog"


def test_only_the_last_delta_carries_reason_and_usage() -> None:
    async def run() -> list[Delta]:
        return await deltas(await started([Reply(SQUARE, finish_reason="length")]), ask())

    *body, last = asyncio.run(run())
    assert all(delta.finish_reason is None and delta.usage is None for delta in body)
    assert last.finish_reason == "length"
    assert last.usage is not None
    assert last.usage.completion_tokens == len(body) + 1
    assert "".join(token.text for delta in body for token in delta.tokens) == SQUARE


@pytest.mark.parametrize("after", [0, 3])
def test_an_error_comes_where_the_script_says(after: int) -> None:
    async def run() -> None:
        engine = await started([Reply(SQUARE, fault="error", fault_after=after), SQUARE])
        seen = []

        async def listen() -> None:
            async for delta in engine.generate(ask()):
                seen.append(delta)

        with pytest.raises(EngineError) as raised:
            await listen()
        assert not isinstance(raised.value, EngineDeadError)
        assert len(seen) == after
        engine.check_health()
        assert await text(engine, ask()) == SQUARE

    asyncio.run(run())


def test_death_fails_everything_from_then_on() -> None:
    async def run() -> None:
        engine = await started([Reply(SQUARE, fault="hang"), Reply(SQUARE, fault="death")])
        hanging = asyncio.create_task(text(engine, ask("hanging")))
        await asyncio.sleep(0)
        with pytest.raises(EngineDeadError):
            await text(engine, ask("fatal"))
        with pytest.raises(EngineDeadError):
            await hanging
        with pytest.raises(EngineDeadError):
            engine.check_health()
        with pytest.raises(EngineDeadError):
            await text(engine, ask())

    asyncio.run(run())


def test_closing_a_hung_answer_cancels_it_and_frees_its_slot() -> None:
    async def run() -> None:
        one = Capabilities("scripted", "scripted", ("region",), 64, 1, 4096)
        engine = await started(
            [Reply(SQUARE, fault="hang", fault_after=1), SQUARE], capabilities=one
        )
        async with aclosing(engine.generate(ask("hung"))) as hung:
            await anext(hung)
            waiting = asyncio.create_task(text(engine, ask("waiting")))
            await asyncio.sleep(0.01)
            assert engine.running == 1
            assert not waiting.done()
        assert await waiting == SQUARE
        assert engine.cancelled == ["hung"]
        assert engine.running == 0

    asyncio.run(asyncio.wait_for(run(), 10))


def test_delays_are_per_token() -> None:
    async def run() -> float:
        engine = await started([Reply("abcdefgh", token_length=2, delay_s=0.02)])
        clock = asyncio.get_running_loop().time
        began = clock()
        await text(engine, ask())
        return clock() - began

    assert asyncio.run(run()) >= 0.08


def test_before_the_start_and_after_the_end_it_is_not_healthy() -> None:
    async def run() -> None:
        engine = ScriptedEngine([SQUARE])
        with pytest.raises(EngineDeadError):
            engine.check_health()
        await engine.start()
        engine.check_health()
        await engine.close()
        with pytest.raises(EngineDeadError):
            await text(engine, ask())

    asyncio.run(run())
