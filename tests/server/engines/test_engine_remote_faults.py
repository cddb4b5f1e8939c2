"""The remote engine when servers fail, are busy, go away and come back."""

import asyncio
import base64
import io
import time
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from simpleseg_server.app import create_app
from simpleseg_server.config import Settings
from simpleseg_server.engines.base import (
    EngineAwayError,
    EngineError,
    EngineOverloadedError,
)
from simpleseg_server.engines.remote import RemoteEngine

from .fake_upstream import Plan
from .remote_support import (
    QUICK,
    REGION,
    MakeUpstream,
    ask_for,
    collect,
    is_well,
    options,
    running,
    until,
    usual,
)
from .support import answer, ask

# Faults.


FAILURES = [
    {"status": 500},
    {"status": 502},
    {"status": 401},
    {"status": 404},
    {"status": 302, "headers": {"location": "http://127.0.0.1:9/"}},
    {"fault": "reset"},
    {"fault": "end"},
    {"fault": "garbage"},
    {"fault": "error event"},
    {"fault": "html"},
    {"fault": "stall"},
    {"fault": "ping"},  # alive, and writes nothing
    {"finish_reason": "abort", "text": ""},
]


@pytest.mark.parametrize("plan", FAILURES, ids=str)
def test_a_request_that_fails_before_its_first_token_is_answered_by_another_upstream(
    make_upstream: MakeUpstream, plan: dict[str, Any]
) -> None:
    bad, good = make_upstream(**plan), make_upstream()

    async def run() -> None:
        async with running(bad, good, timeouts=QUICK, failures_to_open=99) as engine:
            assert (await answer(engine, ask_for(engine, 0))).text == REGION

    asyncio.run(run())
    assert (len(bad.answered), len(good.answered)) == (1, 1)


@pytest.mark.parametrize("plan", FAILURES, ids=str)
@pytest.mark.catalogue("G6")
def test_a_single_upstream_that_fails_is_an_engine_error_and_may_be_asked_again(
    make_upstream: MakeUpstream, plan: dict[str, Any]
) -> None:
    upstream = make_upstream(**plan)

    async def run() -> None:
        async with running(upstream, timeouts=QUICK) as engine:
            with pytest.raises(EngineError) as raised:
                await answer(engine, ask(0))
            assert type(raised.value) is EngineError
            engine.check_health()
            upstream.script = lambda asked: Plan(usual(asked))
            assert (await answer(engine, ask(0))).text == REGION

    asyncio.run(run())


@pytest.mark.parametrize("fault", ["reset", "end", "stall", "ping", "garbage", "error event"])
@pytest.mark.catalogue("G6")
def test_an_answer_that_breaks_off_is_an_error_and_is_not_begun_again(
    make_upstream: MakeUpstream, fault: str
) -> None:
    upstreams = [make_upstream(fault=fault, fault_after=3) for _ in range(2)]

    async def run() -> None:
        async with running(*upstreams, timeouts=QUICK) as engine:
            texts: list[str] = []
            with pytest.raises(EngineError, match="broke off"):
                await collect(engine, texts)
            assert REGION.startswith("".join(texts))
            assert texts
            engine.check_health()

    asyncio.run(run())
    assert sum(len(upstream.answered) for upstream in upstreams) == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_at_fault_fails_alone(make_upstream: MakeUpstream, status: int) -> None:
    upstreams = [make_upstream(status=status) for _ in range(2)]

    async def run() -> None:
        async with running(*upstreams, failures_to_open=1) as engine:
            for _ in range(3):
                with pytest.raises(EngineError, match=f"status {status}"):
                    await answer(engine, ask(0))
            engine.check_health()
            assert all(one.is_available for one in engine._upstreams)

    asyncio.run(run())
    assert sum(len(upstream.answered) for upstream in upstreams) == 3


def test_a_refusal_inside_the_stream_is_the_requests_own_too(make_upstream: MakeUpstream) -> None:
    """vLLM refuses a grammar after it has said 200."""
    upstream = make_upstream()
    plan = Plan(fault="error event", error={"message": "grammar", "code": 400})
    upstream.script = lambda asked: Plan(usual(asked)) if asked.warms_up else plan

    async def run() -> None:
        async with running(upstream, failures_to_open=1) as engine:
            with pytest.raises(EngineError, match="status 400"):
                await answer(engine, ask(0))
            engine.check_health()

    asyncio.run(run())


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_upstream_passes_work_on_and_is_left_in_peace(
    make_upstream: MakeUpstream, status: int
) -> None:
    busy = make_upstream(status=status, headers={"retry-after": "20"})
    idle = make_upstream()

    async def run() -> None:
        async with running(busy, idle, failures_to_open=1) as engine:
            for number in range(20):
                outcome = await answer(engine, replace(ask(0), image_key=f"image {number}"))
                assert outcome.text == REGION
            assert all(one.is_available for one in engine._upstreams)

    asyncio.run(run())
    assert len(busy.answered) <= 1
    assert len(idle.answered) == 20


@pytest.mark.parametrize(("wait", "expected"), [("20", 20.0), (None, None)])
def test_all_busy_is_an_overload_with_the_least_wait(
    make_upstream: MakeUpstream, wait: str | None, expected: float | None
) -> None:
    headers = {} if wait is None else {"retry-after": wait}
    longer = {} if wait is None else {"retry-after": "60"}
    upstreams = (
        make_upstream(status=503, headers=headers),
        make_upstream(status=429, headers=longer),
    )

    async def run() -> None:
        async with running(*upstreams) as engine:
            with pytest.raises(EngineOverloadedError) as raised:
                await answer(engine, ask(0))
            assert raised.value.retry_after_s == expected
            engine.check_health()

    asyncio.run(run())


# Upstreams that go and come back.


def test_the_engine_is_away_while_its_only_upstream_is_and_recovers(
    make_upstream: MakeUpstream,
) -> None:
    upstream = make_upstream()

    async def run() -> None:
        async with running(upstream) as engine:
            assert (await answer(engine, ask(0))).text == REGION
            upstream.stop()
            with pytest.raises(EngineAwayError):
                await answer(engine, ask(0))
            with pytest.raises(EngineAwayError):
                engine.check_health()
            warmed_up = len(upstream.asked)
            upstream.start()
            await until(lambda: is_well(engine))
            assert len(upstream.asked) == warmed_up + 4
            assert (await answer(engine, ask(0))).text == REGION

    asyncio.run(run())


def test_probes_find_an_upstream_that_is_gone_without_any_request(
    make_upstream: MakeUpstream,
) -> None:
    upstream = make_upstream()

    async def run() -> None:
        async with running(upstream, probe_interval_s=0.02) as engine:
            upstream.health = 503
            await until(lambda: not is_well(engine))
            upstream.health = 404  # a server without the route lists its models
            await until(lambda: is_well(engine))
            probes = upstream.probes
            await until(lambda: upstream.probes > probes + 3)
            engine.check_health()

    asyncio.run(run())


def test_an_upstream_that_is_healthy_but_serves_nothing_stays_out(
    make_upstream: MakeUpstream,
) -> None:
    upstream = make_upstream()

    async def run() -> None:
        async with running(upstream, timeouts=QUICK, failures_to_open=2) as engine:
            upstream.script = lambda asked: Plan(usual(asked), fault="ping")
            for _ in range(2):
                with pytest.raises(EngineError):
                    await answer(engine, ask(0))
            asked, probes = len(upstream.asked), upstream.probes
            await until(lambda: len(upstream.asked) >= asked + 2)  # trials, which fail
            with pytest.raises(EngineAwayError):
                engine.check_health()
            assert upstream.health == 200
            assert upstream.probes == probes
            upstream.script = lambda asked: Plan(usual(asked))
            await until(lambda: is_well(engine))

    asyncio.run(run())


def test_with_one_of_two_gone_no_request_is_lost_that_had_not_begun(
    make_upstream: MakeUpstream,
) -> None:
    upstreams = [make_upstream(delay_s=0.02, token_length=12) for _ in range(2)]
    begun: set[int] = set()

    async def ask_one(engine: RemoteEngine, number: int) -> str:
        request = replace(ask(0), image_key=f"image {number}")
        text = ""
        async for delta in engine.generate(request):
            begun.add(number)
            text += delta.text
        return text

    async def run() -> None:
        async with running(*upstreams, max_concurrency=8) as engine:
            tasks = [asyncio.create_task(ask_one(engine, number)) for number in range(40)]
            await until(lambda: len(begun) >= 6)
            upstreams[0].stop()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            lost = {n for n, result in enumerate(results) if isinstance(result, BaseException)}
            assert lost <= begun  # what a socket still held may begin an answer after the end
            assert all(type(results[n]) is EngineError for n in lost)
            assert sum(result == REGION for result in results) == 40 - len(lost)
            assert len(lost) <= 8
            engine.check_health()

    asyncio.run(run())


def test_concurrency_is_bounded_and_what_waits_is_answered(make_upstream: MakeUpstream) -> None:
    upstream = make_upstream(delay_s=0.005)
    most: list[int] = []

    async def run() -> None:
        async with running(upstream, max_concurrency=3) as engine:
            [behind] = engine._upstreams
            tasks = [asyncio.create_task(answer(engine, ask(n))) for n in range(12)]
            while not all(task.done() for task in tasks):
                most.append(behind.running)
                await asyncio.sleep(0.002)
            assert all(task.result().text == REGION for task in tasks)
            assert behind.running == 0

    asyncio.run(run())
    assert max(most) == 3


@pytest.mark.catalogue("G6")
def test_readiness_follows_the_upstream_and_the_server_stays_alive(
    make_upstream: MakeUpstream,
) -> None:
    upstream = make_upstream()
    image = base64.b64encode(picture_bytes()).decode()

    def wait_for(client: TestClient, status: int) -> None:
        deadline = time.monotonic() + 20
        while client.get("/readyz").status_code != status:
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.02)

    with TestClient(create_app(Settings(), RemoteEngine(options(upstream)))) as client:
        wait_for(client, 200)
        for _ in range(2):
            result = client.post("/segment", json={"image": image, "prompt": "a cat"}).json()
            assert result["results"][0]["status"] == "ok"
            upstream.stop()
            wait_for(client, 503)
            assert client.get("/livez").json()["status"] == "unavailable"
            refused = client.post("/segment", json={"image": image, "prompt": "a cat"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (
                503,
                "engine_unavailable",
            )
            upstream.start()
            wait_for(client, 200)
        upstream.script = lambda _: Plan(status=429, headers={"retry-after": "9"})
        refused = client.post("/segment", json={"image": image, "prompt": "a cat"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        assert refused.headers["retry-after"] == "9"


def picture_bytes() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20), "red").save(buffer, "PNG")
    return buffer.getvalue()
