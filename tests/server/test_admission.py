"""Admission: bounded, fair to keys and requests, and nothing is lost on cancellation."""

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest

from simpleseg_server.admission import Admission, WaitedTooLongError
from simpleseg_server.errors import ApiError


def make(slots: int = 1, queued: int = 1) -> Admission:
    return Admission(slots=slots, max_queued_requests=queued, retry_after_s=1.5)


def test_requests_beyond_slots_and_queue_are_refused_with_a_wait() -> None:
    admission = make(slots=1, queued=1)
    with admission.enter(), admission.enter():
        with pytest.raises(ApiError) as caught, admission.enter():
            pass
        assert (caught.value.status, caught.value.code) == (503, "overloaded")
        assert caught.value.retry_after_s == 1.5
    with admission.enter():
        assert admission.requests == 1


def test_a_place_is_given_back_after_an_error() -> None:
    admission = make()
    with pytest.raises(RuntimeError), admission.enter():
        raise RuntimeError
    assert admission.requests == 0


def test_slots_are_taken_in_order_and_bounded() -> None:
    async def scenario() -> tuple[list[int], int]:
        admission, order, running, most = make(slots=2), [], 0, 0

        async def prompt(index: int) -> None:
            nonlocal running, most
            async with admission.slot() as waited_ms:
                assert waited_ms >= 0
                order.append(index)
                running += 1
                most = max(most, running)
                await asyncio.sleep(0.001)
                running -= 1

        await asyncio.gather(*map(prompt, range(8)))
        return order, most

    assert asyncio.run(scenario()) == (list(range(8)), 2)


def test_a_cancelled_wait_leaves_the_queue() -> None:
    async def scenario() -> int:
        admission = make(slots=1)

        async def wait() -> None:
            async with admission.slot():
                pytest.fail("the slot was taken")

        async with admission.slot():
            waiter = asyncio.create_task(wait())
            await asyncio.sleep(0)
            assert admission.waiting_prompts == 1
            waiter.cancel()
            await asyncio.gather(waiter, return_exceptions=True)
        async with asyncio.timeout(1), admission.slot():
            return admission.waiting_prompts

    assert asyncio.run(scenario()) == 0


async def all_of(*work: Coroutine[Any, Any, None]) -> list[BaseException | None]:
    """Each as a request of its own; what became of it."""
    return await asyncio.gather(*map(asyncio.create_task, work), return_exceptions=True)


async def hold(admission: Admission, owner: str, order: list[str], prompts: int = 1) -> None:
    """A request whose prompts run side by side."""

    async def prompt() -> None:
        async with admission.slot():
            order.append(owner)
            await asyncio.sleep(0.002)

    with admission.enter(owner) as ticket:
        ticket.heard(is_all=True)
        await asyncio.gather(*(prompt() for _ in range(prompts)))


def test_keys_take_turns() -> None:
    async def scenario() -> list[str]:
        admission, order = make(slots=1, queued=20), list[str]()
        flood = (hold(admission, "flood", order) for _ in range(8))
        steady = (hold(admission, "steady", order) for _ in range(2))
        assert await all_of(*flood, *steady) == [None] * 10
        return order

    order = asyncio.run(scenario())
    assert sorted(order[:5]) == ["flood"] * 3 + ["steady"] * 2


def test_a_large_request_lets_small_ones_by() -> None:
    async def scenario() -> list[str]:
        admission, order = make(slots=2, queued=20), list[str]()

        async def named(name: str, prompts: int) -> None:
            # One client for all, so that only the size of the requests tells them apart.
            async def prompt() -> None:
                async with admission.slot():
                    order.append(name)
                    await asyncio.sleep(0.002)

            with admission.enter() as ticket:
                ticket.heard(is_all=True)
                await asyncio.gather(*(prompt() for _ in range(prompts)))

        await all_of(named("large", 30), *(named("small", 1) for _ in range(6)))
        return order

    order = asyncio.run(scenario())
    assert order[:2] == ["large", "large"]
    assert order.index("small") == 2
    last_small = len(order) - order[::-1].index("small")
    assert last_small < 16  # of 36


def test_who_holds_most_makes_room_for_another() -> None:
    async def scenario() -> list[BaseException | None]:
        admission, order = make(slots=1, queued=3), list[str]()
        flood = (hold(admission, "flood", order) for _ in range(5))
        steady = (hold(admission, "steady", order) for _ in range(2))
        outcomes = await all_of(*flood, *steady)
        assert admission.requests == admission.waiting_prompts == 0
        assert order.count("steady") == 2
        return outcomes

    outcomes = asyncio.run(scenario())
    refused = [isinstance(outcome, ApiError) for outcome in outcomes]
    # The fifth found the house full, and the newest of those that waited gave way.
    assert refused == [False, False, True, True, True, False, False]
    assert all(o.code == "overloaded" for o in outcomes if isinstance(o, ApiError))


def test_a_body_that_does_not_come_makes_room() -> None:
    async def scenario() -> list[BaseException | None]:
        admission, order = make(slots=1, queued=1), list[str]()

        async def silent() -> None:
            with admission.enter():
                await asyncio.sleep(1)

        async def late() -> None:
            await asyncio.sleep(0.2)
            await hold(admission, "", order)

        return await all_of(silent(), silent(), late())

    first, second, third = asyncio.run(scenario())
    assert isinstance(first, ApiError)
    assert first.code == "overloaded"
    assert (second, third) == (None, None)


def test_nobody_else_s_cancellation_becomes_a_refusal() -> None:
    async def scenario() -> None:
        admission = make()

        async def wait() -> None:
            with admission.enter():
                await asyncio.sleep(60)

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert admission.requests == 0

    asyncio.run(scenario())


def test_a_prompt_waits_only_for_so_long() -> None:
    async def scenario() -> None:
        admission = Admission(slots=1, max_queued_requests=1, retry_after_s=1, max_queue_s=0.01)
        async with admission.slot():
            with pytest.raises(WaitedTooLongError):
                async with admission.slot():
                    pytest.fail("there was no slot")
        assert admission.waiting_prompts == 0
        async with admission.slot():
            pass

    asyncio.run(scenario())


def test_what_cannot_be_in_time_is_refused() -> None:
    async def scenario() -> None:
        admission = make(slots=1, queued=9)
        async with admission.slot():
            await asyncio.sleep(0.05)
        admission.require_time(0)  # a slot is free
        async with admission.slot():
            admission.require_time(60)
            with pytest.raises(ApiError) as caught:
                admission.require_time(0.01)
            assert (caught.value.status, caught.value.code) == (503, "deadline_exceeded")
            assert caught.value.retry_after_s is not None

    asyncio.run(scenario())


def test_any_order_of_leaving_keeps_the_count() -> None:
    """Prompts that end, give up while they wait, and give up as their turn comes."""

    async def scenario(seed: int) -> None:
        draw = random.Random(seed)
        admission = make(slots=2, queued=100)

        async def prompt() -> None:
            async with admission.slot():
                await asyncio.sleep(draw.random() / 500)

        tasks = [asyncio.create_task(prompt()) for _ in range(60)]
        while not all(task.done() for task in tasks):
            draw.choice(tasks).cancel()
            await asyncio.sleep(draw.choice([0, 0, 0.0005]))
        await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(5), admission.slot(), admission.slot():
            assert admission.waiting_prompts == 0

    for seed in range(5):
        asyncio.run(scenario(seed))
