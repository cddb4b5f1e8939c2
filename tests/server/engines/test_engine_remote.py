"""The remote engine: what it asks, what it makes of the answers, its start and its end."""

import asyncio
import base64
import io
import logging
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import SecretStr

from simpleseg_server.config import Settings
from simpleseg_server.engines.base import (
    EngineDeadError,
    EngineError,
)
from simpleseg_server.engines.choose import EngineKind, make_engine
from simpleseg_server.engines.picture import ImageFormat, data_url
from simpleseg_server.engines.remote import RemoteEngine, RemoteOptions
from simpleseg_server.engines.upstream_http import Timeouts
from simpleseg_server.engines.upstreams import Address
from simpleseg_server.tracing import Tracing

from .fake_upstream import Plan
from .remote_support import (
    CUT,
    REGION,
    MakeUpstream,
    ask_for,
    options,
    running,
    until,
)
from .support import IMAGES, answer, ask

# Requests and answers.


def test_the_callers_trace_is_passed_on(make_upstream: MakeUpstream) -> None:
    upstream = make_upstream()
    parent = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    asking = {
        "type": "http",
        "path": "/segment",
        "state": {},
        "headers": [(b"traceparent", parent)],
    }

    async def run() -> None:
        async with running(upstream) as engine:

            async def app(*_: Any) -> None:
                await answer(engine, ask(1))

            await Tracing(app, tracer=None, untraced=frozenset())(asking, _unused, _unused)
            await answer(engine, ask(2))

    asyncio.run(run())
    traced, untraced = upstream.answered
    assert traced.headers["traceparent"].encode() == parent
    assert "traceparent" not in untraced.headers


async def _unused(*_: Any) -> Any:
    raise AssertionError("nothing is received or sent")


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
    calls: list[int] = []

    def counting(image: Image.Image, image_format: ImageFormat) -> str:
        calls.append(1)
        return data_url(image, image_format)

    monkeypatch.setattr("simpleseg_server.engines.image_urls.data_url", counting)
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


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("cached", [None, 0, 39])
def test_what_was_computed_before_is_told_where_the_server_tells(
    make_upstream: MakeUpstream, cached: int | None, counts: bool
) -> None:
    upstream = make_upstream(cached_tokens=cached, counts=counts)

    async def run() -> None:
        async with running(upstream) as engine:
            outcome = await answer(engine, ask(0))
        assert outcome.usage.cached_tokens == cached

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


def test_the_settings_make_the_engine(qwen3_checkpoint: Path) -> None:
    given = Settings(
        upstreams=("http://a:1/v1,2", "http://b:1"),
        upstream_model="birds",
        upstream_api_key=(SecretStr("sesame"),),
        dialect="sglang",
        upstream_idle_timeout_s=7,
    ).remote_options()
    engine = make_engine("remote", str(qwen3_checkpoint), max_batch=5, upstreams=given)
    assert isinstance(engine, RemoteEngine)
    assert engine._options == RemoteOptions(
        (Address("http://a:1", 2.0), Address("http://b:1")),
        model="birds",
        name="simpleseg-demo",
        dialect="sglang",
        api_keys=("sesame",),
        input_hw=(64, 64),
        max_concurrency=5,
        timeouts=Timeouts(idle_s=7.0),
    )
    wrong: list[tuple[EngineKind, dict[str, Any], str]] = [
        ("remote", {"vllm_options": {"dtype": "float16"}}, "no option dtype"),
        ("remote", {"upstreams": Settings().remote_options()}, "needs an upstream"),
        ("embedded", {"upstreams": given}, "use --engine remote"),
    ]
    for kind, arguments, words in wrong:
        with pytest.raises(ValueError, match=words):
            make_engine(kind, None, **{"upstreams": given} | arguments)


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
        await until(lambda: len(upstream.left) == 2)

    asyncio.run(run())
