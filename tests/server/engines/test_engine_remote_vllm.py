"""The remote engine before the real vLLM server, which is killed and started again."""

import asyncio
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from simpleseg_server.engines.base import EngineAwayError, EngineError
from simpleseg_server.engines.remote import RemoteEngine, RemoteOptions

from .remote_support import ask_for, is_well, options, until
from .support import DEMO_MODEL, DEMO_PX, Outcome, answer
from .test_engine_parity import requests
from .vllm_process import START_S, VllmProcess

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        not (DEMO_MODEL / "config.json").is_file(), reason="this build ships no demo model"
    ),
]


def _options(*upstreams: VllmProcess) -> RemoteOptions:
    return options(*upstreams, input_hw=(DEMO_PX, DEMO_PX))


async def _heard(engine: RemoteEngine, number: int, begun: set[int]) -> str:
    """An answer's text; ``begun`` gets the number with its first token."""
    text = ""
    async for delta in engine.generate(requests()[number]):
        begun.add(number)
        text += delta.text
    return text


def test_capabilities_are_what_vllm_says(demo_upstream: VllmProcess) -> None:
    async def run() -> None:
        engine = RemoteEngine(_options(demo_upstream))
        await engine.start()
        assert engine.capabilities.model == "simpleseg-demo"
        assert engine.capabilities.max_tokens == 8192
        with pytest.raises(EngineError, match="status 400"):  # no room is left for the prompt
            await answer(engine, replace(requests()[0], max_tokens=8192))
        engine.check_health()
        await engine.close()

    asyncio.run(run())


def test_a_killed_vllm_fails_what_runs_and_is_used_again_once_it_is_back(
    demo_upstream: VllmProcess,
) -> None:
    """Without a restart of the engine, and with the same answers as before."""

    async def run() -> None:
        engine = RemoteEngine(_options(demo_upstream))
        await engine.start()
        before = [await answer(engine, request) for request in requests()[:4]]
        begun: set[int] = set()
        tasks = [asyncio.create_task(_heard(engine, number, begun)) for number in range(6)]
        await until(lambda: bool(begun), 120)
        await asyncio.to_thread(demo_upstream.kill)
        began = time.monotonic()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert time.monotonic() - began < 30
        assert all(isinstance(outcome, str | EngineError) for outcome in outcomes), outcomes
        assert any(isinstance(outcome, EngineError) for outcome in outcomes)
        with pytest.raises(EngineAwayError):
            await answer(engine, requests()[0])
        with pytest.raises(EngineAwayError):
            engine.check_health()
        demo_upstream.start()
        await until(lambda: is_well(engine), START_S)
        after = [await answer(engine, request) for request in requests()[:4]]
        assert _told(after) == _told(before)
        await engine.close()

    asyncio.run(run())


def test_with_one_of_two_killed_no_request_is_lost_that_had_not_begun(
    demo_upstream: VllmProcess, tmp_path: Path
) -> None:
    begun: set[int] = set()

    async def run(other: VllmProcess) -> None:
        engine = RemoteEngine(_options(other, demo_upstream))
        await engine.start()
        await until(lambda: all(one.is_available for one in engine._upstreams), START_S)
        alone = [await answer(engine, request) for request in requests()]
        tasks = [asyncio.create_task(_heard(engine, n, begun)) for n in range(len(alone))]
        killed = engine._upstreams[0]
        await until(lambda: bool(begun) and killed.running > 0, 120)
        await asyncio.to_thread(other.kill)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        lost = {n for n, result in enumerate(results) if isinstance(result, BaseException)}
        assert lost <= begun
        assert all(type(results[n]) is EngineError for n in lost)
        kept = [n for n in range(len(alone)) if n not in lost]
        same = sum(results[n] == alone[n].text for n in kept)
        assert same >= len(kept) - 2  # a tie may fall the other way in another batch
        engine.check_health()
        assert not killed.is_available
        assert (await answer(engine, ask_for(engine, 1))).text
        await engine.close()

    with closing(VllmProcess(DEMO_MODEL, tmp_path / "log", image_px=DEMO_PX)) as other:
        other.start()
        other.wait()
        asyncio.run(run(other))


def _told(outcomes: list[Outcome]) -> list[tuple[str, str]]:
    return [(outcome.text, outcome.finish_reason) for outcome in outcomes]
