"""A second upstream is asked where the first one is slow to begin."""

import asyncio

import pytest

from simpleseg_server.engines.base import EngineError

from .fake_upstream import FakeUpstream
from .remote_support import REGION, MakeUpstream, ask_for, running, until
from .support import answer


async def until_left(upstream: FakeUpstream, count: int) -> None:
    await until(lambda: len(upstream.left) == count)


def test_a_straggler_is_overtaken_and_let_go(make_upstream: MakeUpstream) -> None:
    straggler, other = make_upstream(fault="stall"), make_upstream()

    async def run() -> None:
        async with running(straggler, other, hedge_after_s=0.1) as engine:
            outcome = await answer(engine, ask_for(engine, 0))
            assert outcome.text == REGION
            await until_left(straggler, 1)
            assert [len(one.answered) for one in (straggler, other)] == [1, 1]
            assert all(one.running == 0 for one in engine._upstreams)

    asyncio.run(run())


def test_nobody_else_is_asked_where_the_first_one_is_quick(make_upstream: MakeUpstream) -> None:
    first, other = make_upstream(), make_upstream()

    async def run() -> None:
        async with running(first, other, hedge_after_s=10.0) as engine:
            for _ in range(3):
                await answer(engine, ask_for(engine, 0))
            assert [len(one.answered) for one in (first, other)] == [3, 0]

    asyncio.run(run())


def test_a_straggler_still_answers_where_the_other_fails(make_upstream: MakeUpstream) -> None:
    straggler, other = make_upstream(delay_s=0.3), make_upstream(status=500)

    async def run() -> None:
        async with running(straggler, other, hedge_after_s=0.1) as engine:
            outcome = await answer(engine, ask_for(engine, 0))
            assert outcome.text == REGION
            assert [len(one.answered) for one in (straggler, other)] == [1, 1]

    asyncio.run(run())


def test_stragglers_beyond_a_tenth_are_waited_for(make_upstream: MakeUpstream) -> None:
    straggler, other = make_upstream(fault="stall"), make_upstream()

    async def run() -> None:
        async with running(straggler, other, hedge_after_s=0.05) as engine:
            for _ in range(10):
                await answer(engine, ask_for(engine, 0))
            waiting = asyncio.create_task(answer(engine, ask_for(engine, 0)))
            await asyncio.sleep(0.5)
            assert not waiting.done()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await until_left(straggler, 11)
            assert len(other.answered) == 10

    asyncio.run(run())


def test_both_may_fail(make_upstream: MakeUpstream) -> None:
    first, other = make_upstream(status=500), make_upstream(status=500)

    async def run() -> None:
        async with running(first, other, hedge_after_s=0.1) as engine:
            with pytest.raises(EngineError):
                await answer(engine, ask_for(engine, 0))
            assert [len(one.answered) for one in (first, other)] == [1, 1]

    asyncio.run(run())
