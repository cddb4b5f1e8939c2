"""What passes between front ends and replicas; none of it needs Ray."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpleseg_server.affinity import affinity, fair_share
from simpleseg_server.engines.base import (
    Delta,
    EngineAwayError,
    EngineDeadError,
    EngineError,
    EngineOverloadedError,
    PromptRefusedError,
    TokenLogprob,
)
from simpleseg_server.ray_serve.frames import Delivered, Failure, Frame, framed, unframed

ANSWER = "[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]]."


def deltas_of(cuts: Sequence[int]) -> list[Delta]:
    """The answer, a token for each character, in pieces that end at the cuts."""
    ends = [*sorted({cut for cut in cuts if 0 < cut < len(ANSWER)}), len(ANSWER)]
    starts = [0, *ends[:-1]]
    pieces = [ANSWER[start:end] for start, end in zip(starts, ends, strict=True)]
    found = [Delta(one, tuple(TokenLogprob(char, -0.1) for char in one)) for one in pieces]
    return [*found, Delta("", (), "stop")]


Cuts = st.lists(st.integers(0, len(ANSWER)))


@given(first=Cuts, second=Cuts, lost_after=st.integers(0, 40))
def test_an_answer_goes_on_where_it_was_however_it_is_cut(
    first: list[int], second: list[int], lost_after: int
) -> None:
    delivered = Delivered()
    got = [delivered.rest(delta) for delta in deltas_of(first)[:-1][:lost_after]]
    delivered.begin_again()
    got += [delivered.rest(delta) for delta in deltas_of(second)]
    assert "".join(delta.text for delta in got) == ANSWER
    assert "".join(token.text for delta in got for token in delta.tokens) == ANSWER
    assert [delta.finish_reason for delta in got if delta.finish_reason] == ["stop"]


def test_another_answer_is_not_taken_for_the_same() -> None:
    delivered = Delivered()
    delivered.rest(Delta("[[[0.1", ()))
    delivered.begin_again()
    with pytest.raises(EngineError, match="otherwise"):
        delivered.rest(Delta("[[[0.2", ()))


ERRORS = [
    EngineError("a"),
    EngineDeadError("b"),
    EngineAwayError("c"),
    EngineOverloadedError("d", 3.0),
    PromptRefusedError("e", "context_length_exceeded"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_arrive_as_they_were(error: EngineError) -> None:
    arrived = Failure.of(error).to_error()
    assert (type(arrived), str(arrived), vars(arrived)) == (type(error), str(error), vars(error))


async def _answer(deltas: Sequence[Delta], error: Exception | None) -> AsyncGenerator[Delta, None]:
    for delta in deltas:
        yield delta
    if error is not None:
        raise error


@pytest.mark.parametrize("error", [None, EngineDeadError("gone"), ValueError("secret")])
def test_frames_hold_every_delta_in_order_and_the_error_last(error: Exception | None) -> None:
    deltas = deltas_of(range(len(ANSWER)))

    async def run() -> tuple[list[Delta], list[Frame], EngineError | None]:
        frames = [frame async for frame in framed(_answer(deltas, error))]
        got: list[Delta] = []
        try:
            async for delta in unframed(_each(frames)):
                got.append(delta)
        except EngineError as raised:
            return got, frames, raised
        return got, frames, None

    got, frames, raised = asyncio.run(run())
    assert got == deltas
    assert len(frames) < len(deltas)
    assert (raised is None) == (error is None)
    assert isinstance(raised, EngineDeadError) == isinstance(error, EngineDeadError)
    assert "secret" not in str(raised)


async def _each(frames: Sequence[Frame]) -> AsyncGenerator[Frame, None]:
    for frame in frames:
        yield frame


def test_closing_the_frames_closes_the_answer() -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncGenerator[Delta, None]:
        try:
            while True:
                yield Delta("[", ())
                await asyncio.sleep(0.001)
        finally:
            closed.set()

    async def run() -> None:
        frames = framed(endless())
        await anext(frames)
        await frames.aclose()
        assert closed.is_set()

    asyncio.run(run())


def test_images_move_only_from_a_worker_that_goes() -> None:
    workers = [f"worker-{number}" for number in range(8)]
    keys = [f"image-{number}" for number in range(400)]

    def owners(among: list[str]) -> dict[str, str]:
        return {key: max(among, key=lambda one: affinity(one, key)) for key in keys}

    before, after = owners(workers), owners(workers[:-1])
    moved = {key for key in keys if before[key] != after[key]}
    assert moved == {key for key in keys if before[key] == workers[-1]}
    assert 400 / 8 / 2 < len(moved) < 400 / 8 * 2


def test_a_share_grows_with_what_is_running() -> None:
    assert fair_share(0, 0.25) == 4
    assert fair_share(31, 0.25) == 10
