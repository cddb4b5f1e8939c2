"""Admission: bounded, first come first served, and nothing is lost on cancellation."""

import asyncio

import pytest

from simpleseg_server.admission import Admission
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
