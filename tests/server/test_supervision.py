"""The parts of supervision, each alone: who is judged stuck, what is told twice, who waits."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpleseg_server.engines.base import (
    DeathReason,
    Delta,
    EngineDeadError,
    EngineOverloadedError,
    GenerationRequest,
    PromptRefusedError,
    TokenLogprob,
    Usage,
)
from simpleseg_server.supervision.poison import Poison
from simpleseg_server.supervision.quarantine import Quarantine
from simpleseg_server.supervision.replay import MOST_RUNS, Flight, ReplayDiffersError
from simpleseg_server.supervision.vitals import TICK_S, Patience, Sample, Verdict, Vitals
from simpleseg_server.supervision.wire import receive, send

REQUEST = GenerationRequest("id", np.zeros((2, 2, 3), np.uint8), "key", "Find it.", "region", 64)
COST = Usage(1, 1, 1, 0.0, 0.0, 0.0)


class Watched:
    """A process as the kernel and its heartbeats show it, second by second."""

    def __init__(self, *, running: int = 0, has_heart: bool = True) -> None:
        self.now = 0.0
        self.seen = Sample(0.0)
        self.vitals = Vitals(
            lambda: [1],
            lambda: running,
            Patience(),
            has_heart=has_heart,
            clock=lambda: self.now,
            look=lambda _: self.seen,
        )

    def pass_by(
        self, seconds: float, *, beats: bool, tokens: bool = False, cpu: float = 0.0
    ) -> Verdict | None:
        """The first verdict; ``cpu`` is the share of a core that it uses."""
        for _ in range(round(seconds / TICK_S)):
            self.now += TICK_S
            self.seen = replace(self.seen, cpu_s=self.seen.cpu_s + cpu * TICK_S)
            if beats:
                self.vitals.beat()
            if tokens:
                self.vitals.progress()
            verdict = self.vitals.check()
            if verdict is not None:
                return verdict
        return None


def test_idle_and_beating_is_well() -> None:
    assert Watched().pass_by(600, beats=True) is None


def test_silent_and_idle_is_stuck_within_three_seconds() -> None:
    watched = Watched()
    assert watched.pass_by(3, beats=False) == "hang"
    assert watched.now <= 3


def test_beating_without_a_token_or_work_is_stuck_within_three_seconds() -> None:
    watched = Watched(running=1)
    assert watched.pass_by(3, beats=True) == "hang"


def test_a_long_prompt_that_is_computed_is_waited_for() -> None:
    assert Watched(running=1).pass_by(59, beats=True, cpu=0.5) is None
    assert Watched(running=1).pass_by(61, beats=True, cpu=0.5) == "hang"
    assert Watched(running=1).pass_by(600, beats=True, tokens=True) is None


def test_a_process_that_computes_may_be_silent_for_a_while() -> None:
    assert Watched().pass_by(9, beats=False, cpu=1.0) is None
    assert Watched().pass_by(11, beats=False, cpu=1.0) == "hang"


def test_stopped_is_seen_sooner_and_named() -> None:
    watched = Watched()
    watched.seen = Sample(0.0, is_stopped=True)
    assert watched.pass_by(2, beats=False) == "stopped"
    assert watched.now <= 1.5


def test_a_wait_for_the_disk_is_no_hang() -> None:
    watched = Watched(running=1)
    watched.seen = Sample(0.0, is_in_io=True)
    assert watched.pass_by(9, beats=True) is None


def test_who_looks_seldom_blames_nobody() -> None:
    """The server itself stood still for an hour."""
    watched = Watched(running=1)
    watched.now += 3600
    assert watched.vitals.check() is None


def test_without_a_heart_only_requests_tell() -> None:
    assert Watched(has_heart=False).pass_by(600, beats=False) is None
    assert Watched(has_heart=False, running=1).pass_by(3, beats=False) == "hang"


def _pieces(text: str, cuts: Sequence[int]) -> Iterator[Delta]:
    """The text in deltas, a token for each two characters, the last one with the end."""
    ends = sorted({0, len(text), *(cut % (len(text) + 1) & ~1 for cut in cuts)})
    for start, end in pairwise(ends):
        tokens = [text[at : at + 2] for at in range(start, end, 2)]
        yield Delta(text[start:end], tuple(TokenLogprob(token, -0.1) for token in tokens))
    yield Delta("", (), "stop", COST)


cuts = st.lists(st.integers(0, 60), max_size=8)


@given(st.text("[]0123., ", max_size=40), cuts, cuts, st.integers(0, 8))
def test_an_answer_over_two_runs_is_told_once(
    text: str, first: Sequence[int], second: Sequence[int], heard: int
) -> None:
    flight = Flight(REQUEST)
    told = []
    for run in (list(_pieces(text, first))[:-1][:heard], _pieces(text, second)):
        flight.begin_run()
        told += [news for news in map(flight.news, run) if news is not None]
    assert "".join(delta.text for delta in told) == text
    assert "".join(token.text for delta in told for token in delta.tokens) == text
    assert [delta.finish_reason for delta in told].count("stop") == 1


@pytest.mark.parametrize("other", ["[[0.2", "[[", ""])
def test_another_text_is_no_replay(other: str) -> None:
    flight = Flight(REQUEST)
    flight.news(next(_pieces("[[0.1,", [])))
    flight.begin_run()
    with pytest.raises(ReplayDiffersError):
        list(map(flight.news, _pieces(other, [])))


def test_every_run_of_a_sampled_request_draws_alike() -> None:
    asked = replace(REQUEST, temperature=1.0)
    assert Flight(asked).request.seed is not None
    assert Flight(replace(asked, seed=7)).request.seed == 7
    assert Flight(REQUEST).request is REQUEST


def _fate(*reasons: DeathReason) -> str:
    flight = Flight(REQUEST)
    try:
        for reason in reasons:
            flight.blame(reason)
    except PromptRefusedError as error:
        return error.code
    except EngineDeadError:
        return "given up"
    return "alone" if flight.is_suspect else "together"


def test_blame() -> None:
    assert _fate("crash") == _fate("hang") == _fate("memory") == "alone"
    assert _fate("crash", "hang") == "request_poisoned"
    assert _fate("killed") == _fate("stopped", "killed") == "together"
    assert _fate("crash", "killed") == "alone"
    killed: list[DeathReason] = ["killed"] * MOST_RUNS
    assert _fate(*killed) == "given up"


def test_poison_is_known_by_what_is_asked() -> None:
    poison = Poison()
    assert REQUEST not in poison
    poison.add(REQUEST)
    assert replace(REQUEST, request_id="another", seed=3) in poison
    assert replace(REQUEST, image_key="another") not in poison
    assert replace(REQUEST, instruction="Find her.") not in poison


def test_a_suspect_is_alone_and_does_not_wait_for_those_who_come_later() -> None:
    async def run() -> list[str]:
        quarantine, seen = Quarantine(), []

        async def visit(name: str, *, alone: bool) -> None:
            async with quarantine.place(alone=alone):
                seen.append(f"{name} in")
                await asyncio.sleep(0.01)
                seen.append(f"{name} out")

        async with asyncio.TaskGroup() as group:
            for name in ("a", "b", "SUSPECT", "c", "d"):
                group.create_task(visit(name, alone=name == "SUSPECT"))
        return seen

    seen = asyncio.run(run())
    assert seen[:2] == ["a in", "b in"]
    at = seen.index("SUSPECT in")
    assert seen[at + 1] == "SUSPECT out"
    assert set(seen[:at]) == {"a in", "b in", "a out", "b out"}


def test_a_suspect_that_gives_up_waiting_lets_the_others_in() -> None:
    async def run() -> None:
        quarantine = Quarantine()
        async with quarantine.place(alone=False):
            suspect = asyncio.create_task(quarantine.place(alone=True).__aenter__())
            await asyncio.sleep(0)
            suspect.cancel()
            await asyncio.gather(suspect, return_exceptions=True)
            async with asyncio.timeout(5), quarantine.place(alone=False):
                pass

    asyncio.run(run())


def test_errors_travel_with_what_they_say() -> None:
    async def run() -> list[object]:
        reader = asyncio.StreamReader()

        class Writer:
            def writelines(self, parts: Sequence[bytes]) -> None:
                reader.feed_data(b"".join(parts))

        sent = (
            PromptRefusedError("too long", "context_length_exceeded"),
            EngineOverloadedError("busy", 7.0),
            EngineDeadError("gone", "memory"),
        )
        for error in sent:
            send(Writer(), error)  # type: ignore[arg-type]
        return [await receive(reader) for _ in sent]

    refused, busy, dead = asyncio.run(run())
    assert isinstance(refused, PromptRefusedError)
    assert (str(refused), refused.code) == ("too long", "context_length_exceeded")
    assert isinstance(busy, EngineOverloadedError)
    assert busy.retry_after_s == 7.0
    assert isinstance(dead, EngineDeadError)
    assert dead.reason == "memory"
