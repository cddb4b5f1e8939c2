"""The remote engine against servers on real sockets that fail in every way they can."""

import asyncio
import base64
import io
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simpleseg_server.engines.base import (
    EngineAwayError,
    EngineDeadError,
    EngineError,
    EngineOverloadedError,
    GenerationRequest,
)
from simpleseg_server.engines.remote import RemoteEngine, RemoteOptions
from simpleseg_server.engines.upstream_http import Timeouts
from simpleseg_server.engines.upstreams import Address, choose

from .fake_upstream import Asked, FakeUpstream, Plan
from .support import IMAGES, answer, ask

REGION = "[[[0.1, 0.1], [0.5, 0.1], [0.5, 0.5], [0.1, 0.5]]]."
CUT = "[[[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]]]"
ANSWERS = {"bounding box": "[0.1, 0.1, 0.5, 0.5].", "point": "[0.25, 0.75].", "Describe": "a thing"}
QUICK = Timeouts(connect_s=2.0, probe_s=1.0, first_token_s=0.5, idle_s=0.4)
PATIENT = Timeouts(connect_s=5.0, probe_s=5.0, first_token_s=20.0, idle_s=20.0)


def usual(asked: Asked) -> str:
    found = [text for words, text in ANSWERS.items() if words in asked.instruction]
    return found[0] if found else REGION


MakeUpstream = Callable[..., FakeUpstream]


@pytest.fixture
def make_upstream() -> Iterator[MakeUpstream]:
    """A server that answers every request but those that warm up by ``plan``."""
    made: list[FakeUpstream] = []

    def make(**plan: Any) -> FakeUpstream:
        def script(asked: Asked) -> Plan:
            return Plan(usual(asked)) if asked.warms_up else Plan(**{"text": usual(asked)} | plan)

        made.append(FakeUpstream(script))
        return made[-1]

    yield make
    for upstream in made:
        upstream.close()


def options(*upstreams: FakeUpstream, **changes: Any) -> RemoteOptions:
    addresses = tuple(Address(upstream.url) for upstream in upstreams)
    return RemoteOptions(addresses, **{"timeouts": PATIENT, "probe_interval_s": 0.1} | changes)


@asynccontextmanager
async def running(*upstreams: FakeUpstream, **changes: Any) -> AsyncIterator[RemoteEngine]:
    engine = RemoteEngine(options(*upstreams, **changes))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.005)


async def collect(engine: RemoteEngine, texts: list[str]) -> None:
    async for delta in engine.generate(ask(0)):
        texts.append(delta.text)


def is_well(engine: RemoteEngine) -> bool:
    try:
        engine.check_health()
    except EngineAwayError:
        return False
    return True


def ask_for(engine: RemoteEngine, number: int) -> GenerationRequest:
    """A request on an image of upstream ``number``."""
    upstreams = engine._upstreams
    keys = (f"image {n}" for n in range(1000))
    wanted = upstreams[number]
    return replace(ask(0), image_key=next(k for k in keys if choose(upstreams, k, ()) is wanted))


# Requests and answers.


def test_a_request_becomes_a_chat_request(make_upstream: MakeUpstream) -> None:
    upstream = make_upstream()

    async def run() -> None:
        async with running(upstream, api_keys=("sesame",)) as engine:
            await answer(engine, replace(ask(1), temperature=0.5, seed=3))

    asyncio.run(run())
    [asked] = upstream.answered
    assert asked.headers["authorization"] == "Bearer sesame"
    assert asked.body["model"] == "/models/fake-model"
    assert (asked.body["temperature"], asked.body["seed"]) == (0.5, 3)
    assert "{2,6}" in asked.body["structured_outputs"]["grammar"]  # one vertex more than 6
    image, text = asked.body["messages"][0]["content"]
    assert text["text"] == ask(1).instruction
    np.testing.assert_array_equal(decoded(image["image_url"]["url"]), IMAGES[1])
    assert len(upstream.asked) == 5  # a warm-up for every task


def decoded(url: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def test_images_are_stretched_or_scaled_as_the_model_wants(make_upstream: MakeUpstream) -> None:
    upstream = make_upstream()

    async def run() -> None:
        for changes in (
            {"input_hw": (64, 32)},
            {"max_pixels": 1400},
            {"image_format": "jpeg"},
        ):
            async with running(upstream, **changes) as engine:
                await answer(engine, ask(0))

    asyncio.run(run())
    urls = [one.body["messages"][0]["content"][0]["image_url"]["url"] for one in upstream.answered]
    assert [decoded(url).shape for url in urls] == [(64, 32, 3), (30, 46, 3), (90, 140, 3)]
    assert urls[2].startswith("data:image/jpeg;base64,")


def test_an_image_is_encoded_once_for_all_its_prompts(
    make_upstream: MakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simpleseg_server.engines import image_urls

    calls: list[int] = []
    encode = image_urls.data_url

    def counting(*arguments: Any) -> str:
        calls.append(1)
        return encode(*arguments)

    monkeypatch.setattr(image_urls, "data_url", counting)
    upstream = make_upstream()

    async def run() -> None:
        async with running(upstream) as engine:
            calls.clear()
            await asyncio.gather(*(answer(engine, ask(n)) for n in range(9)))

    asyncio.run(run())
    assert len(calls) == len(IMAGES)


@pytest.mark.parametrize("per_event", [1, 3, 1000])
@pytest.mark.parametrize("logprobs", [True, False])
def test_events_become_deltas(make_upstream: MakeUpstream, per_event: int, logprobs: bool) -> None:
    upstream = make_upstream(per_event=per_event, logprobs=logprobs)

    async def run() -> None:
        async with running(upstream, logprobs=logprobs) as engine:
            outcome = await answer(engine, ask(0))
        count = -(-len(REGION) // 4)
        assert (outcome.text, outcome.finish_reason) == (REGION, "stop")
        assert [token.logprob for token in outcome.tokens] == [-0.5] * (count * logprobs)
        assert outcome.usage.prompt_tokens == 40
        assert outcome.usage.completion_tokens == count + 1
        assert outcome.usage.forward_passes <= -(-count // per_event)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("max_points", "text", "reason"), [(5, REGION, "stop"), (4, REGION, "stop"), (3, CUT, "length")]
)
@pytest.mark.parametrize("per_event", [1, 1000])
@pytest.mark.parametrize("counts", [True, False])
def test_length_is_said_where_the_model_wanted_more_points(
    make_upstream: MakeUpstream,
    max_points: int,
    text: str,
    reason: str,
    per_event: int,
    counts: bool,
) -> None:
    """Also where a server counts tokens at the end only: then that is waited for."""
    upstream = make_upstream(per_event=per_event, counts=counts)

    async def run() -> None:
        async with running(upstream) as engine:
            outcome = await answer(engine, ask(0, max_points=max_points))
        assert (outcome.text, outcome.finish_reason) == (text, reason)
        assert outcome.usage.prompt_tokens == 40
        assert outcome.usage.completion_tokens in (len(outcome.tokens), len(outcome.tokens) + 1)

    asyncio.run(run())


def test_an_answer_without_a_grammar_is_cut_at_once(make_upstream: MakeUpstream) -> None:
    """It might go on for long after its budget."""
    endless = REGION[:-3] + ", [0.2, 0.2]" * 300
    upstream = make_upstream(text=endless, delay_s=0.002, counts=False)

    async def run() -> None:
        async with running(upstream, dialect="none") as engine:
            outcome = await answer(engine, ask(0, max_points=4))
            assert (outcome.text, outcome.finish_reason) == (REGION[:-1], "length")
        await until(lambda: len(upstream.left) == 1)

    asyncio.run(run())
    assert not {"structured_outputs", "top_k"} & set(upstream.answered[0].body)


def test_capabilities_come_from_options_and_upstreams(make_upstream: MakeUpstream) -> None:
    first, second = make_upstream(), make_upstream()
    second.models = [{"id": "/models/fake-model", "max_model_len": 900}, {"id": "other"}]

    async def run() -> None:
        async with running(first, second, max_concurrency=5) as engine:
            seen = engine.capabilities
            assert (seen.engine, seen.model) == ("remote", "fake-model")
            assert (seen.max_tokens, seen.max_concurrency) == (900, 5)
            with pytest.raises(EngineError, match="above 900"):
                await answer(engine, ask(0, max_tokens=901))
        first.models = second.models = [{"id": "org/birds"}]
        async with running(first, second, input_hw=(128, 128), name="b") as engine:
            seen = engine.capabilities
            assert (seen.model, seen.max_tokens) == ("b", 8192)
            assert (seen.input_hw, seen.max_pixels) == ((128, 128), 128 * 128)
        second.models = [{"id": "another"}]
        async with running(first, second) as engine:  # the model of the first that answers
            served = {one.model for one in engine._upstreams if one.is_available}
            assert len(served) == 1
        async with running(first, second, model="another") as engine:
            assert engine.capabilities.model == "another"
            await answer(engine, ask(0))
        assert second.answered[-1].body["model"] == "another"

    asyncio.run(run())


def test_options_that_do_not_fit_together_are_refused() -> None:
    one, other = Address("http://a"), Address("http://b")
    for wrong in (
        {"upstreams": ()},
        {"upstreams": (one, Address("http://a", 2.0))},
        {"upstreams": (one,), "api_keys": ("a", "b")},
    ):
        with pytest.raises(ValueError, match="upstream"):
            RemoteOptions(**wrong)
    assert "sesame" not in repr(RemoteOptions((one, other), api_keys=("sesame",)))


def test_each_upstream_gets_its_own_key_and_no_log_has_one(
    make_upstream: MakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    upstreams = [make_upstream(), make_upstream(status=500)]

    async def run() -> None:
        async with running(*upstreams, api_keys=("sesame", "abracadabra")) as engine:
            for number in range(2):
                await answer(engine, ask_for(engine, number))

    asyncio.run(run())
    for upstream, key in zip(upstreams, ("sesame", "abracadabra"), strict=True):
        assert {one.headers["authorization"] for one in upstream.asked} == {f"Bearer {key}"}
    assert "upstream failed" in caplog.text
    assert "sesame" not in caplog.text
    assert "abracadabra" not in caplog.text


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
            before = set(begun)
            upstreams[0].stop()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            lost = {n for n, result in enumerate(results) if isinstance(result, BaseException)}
            assert lost <= before
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


# Start and end.


def test_start_waits_for_an_upstream(make_upstream: MakeUpstream) -> None:
    upstream = make_upstream()
    upstream.stop()

    async def run() -> None:
        engine = RemoteEngine(options(upstream))
        starting = asyncio.create_task(engine.start())
        await asyncio.sleep(0.3)
        assert not starting.done()
        upstream.start()
        await asyncio.wait_for(starting, 10)
        assert (await answer(engine, ask(0))).text == REGION
        await engine.close()

    asyncio.run(run())


def test_start_goes_on_with_those_that_answer(make_upstream: MakeUpstream) -> None:
    gone, there = make_upstream(), make_upstream()
    gone.stop()

    async def run() -> None:
        async with running(gone, there) as engine:
            assert (await answer(engine, ask(0))).text == REGION
            gone.start()
            await until(lambda: all(one.is_available for one in engine._upstreams))

    asyncio.run(run())


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(status=401), "status 401"),
        (Plan(status=404), "status 404"),
        (Plan(status=400, error={"message": "no grammars here"}), "no grammars here"),
    ],
)
def test_start_says_what_every_upstream_refuses(
    make_upstream: MakeUpstream, plan: Plan, words: str
) -> None:
    upstreams = [make_upstream(), make_upstream()]
    for upstream in upstreams:
        upstream.script = lambda asked: plan

    async def run() -> None:
        engine = RemoteEngine(options(*upstreams))
        with pytest.raises(EngineError, match=words):
            await asyncio.wait_for(engine.start(), 10)
        with pytest.raises(EngineDeadError):
            engine.check_health()

    asyncio.run(run())


def test_start_gives_up_after_its_time(make_upstream: MakeUpstream) -> None:
    upstream = make_upstream()
    upstream.stop()

    async def run() -> None:
        engine = RemoteEngine(options(upstream, start_timeout_s=0.2))
        with pytest.raises(EngineError, match="cannot be reached"):
            await asyncio.wait_for(engine.start(), 10)
        upstream.start()
        upstream.models = [{"id": "another"}]
        engine = RemoteEngine(options(upstream, model="birds"))
        with pytest.raises(EngineError, match="does not serve birds"):
            await asyncio.wait_for(engine.start(), 10)

    asyncio.run(run())


def test_closing_the_iterator_cancels_the_request_upstream(make_upstream: MakeUpstream) -> None:
    upstream = make_upstream(delay_s=0.01)

    async def run() -> None:
        async with running(upstream) as engine:
            async with aclosing(engine.generate(ask(0))) as deltas:
                await anext(deltas)
            await until(lambda: len(upstream.left) == 1)
            task = asyncio.create_task(answer(engine, ask(1)))
            await until(lambda: len(upstream.answered) == 2)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await until(lambda: len(upstream.left) == 2)
            assert engine._upstreams[0].running == 0
            assert engine._upstreams[0].is_available

    asyncio.run(run())


def test_close_fails_what_runs_and_what_waits(make_upstream: MakeUpstream) -> None:
    upstream = make_upstream(fault="stall", fault_after=2)

    async def run() -> None:
        engine = RemoteEngine(options(upstream, max_concurrency=2))
        await engine.start()
        tasks = [asyncio.create_task(answer(engine, ask(n))) for n in range(5)]
        await until(lambda: len(upstream.answered) == 2)
        began = time.monotonic()
        await engine.close()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [EngineDeadError] * 5
        assert time.monotonic() - began < 5
        await engine.close()

    asyncio.run(run())
    assert math.isclose(len(upstream.left), 2)
