"""Loads on real servers with a scripted engine: what is counted, and from when."""

import asyncio
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import pytest

from simpleseg.bench.checking import Checker, Rules
from simpleseg.bench.load import Load, arrivals, run_load, run_load_async
from simpleseg.bench.questions import Pictures, Question, load_questions
from simpleseg.bench.ramp import Ramp, capacity, climb
from simpleseg.bench.result import LoadResult, Sample
from simpleseg.bench.wire import Endpoint, Target
from simpleseg_polygon.codec import parse_region
from simpleseg_polygon.geometry import ImageSize
from simpleseg_polygon.prompts import TARGETS
from simpleseg_polygon.raster import region_to_rle
from simpleseg_server.engines.base import Capabilities, GenerationRequest
from simpleseg_server.engines.scripted import Reply, ScriptedEngine

from .serving import TRIANGLE, serving

pytest.importorskip("aiohttp")
pytest.importorskip("hdrh")

OTHER = TRIANGLE.replace("0.75, 0.25", "0.7, 0.25")
STALL_S = 2.0


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    """Without their truth, which a script does not know."""
    found = load_questions("packaged", pictures=Pictures([ImageSize(32, 48)]))
    return [Question(one.image_name, one.image, one.fields) for one in found]


def asking(question: Question, *phrases: str) -> list[Question]:
    return [Question(question.image_name, question.image, {"prompts": [text]}) for text in phrases]


def by_phrase(replies: dict[str, Reply]) -> ScriptedEngine:
    def reply(request: GenerationRequest) -> Reply:
        found = [one for phrase, one in replies.items() if phrase in request.instruction]
        return found[0] if found else Reply(TRIANGLE)

    return ScriptedEngine(reply)


def closed(users: int, requests: int, **options: Any) -> Load:
    return Load("closed", users, requests=requests, warmup_s=0, **options)


def test_counts_add_up(questions: list[Question]) -> None:
    replies = {
        "the unclear": Reply("well"),
        "the cut": Reply(TRIANGLE[:-6], finish_reason="length"),
        "the broken": Reply(TRIANGLE, fault="error", fault_after=2),
    }
    asked = asking(questions[0], "the unclear", "the cut", "the broken", "the good")
    with serving(by_phrase(replies)) as url:
        result = run_load(Target(url), asked, closed(3, 20))
    assert len(result.samples) == 20 == len(result.answered) + sum(result.errors.values())
    right = [sample for sample in result.samples if sample.is_right]
    assert len(right) + sum(result.flaws.values()) == len(result.answered)
    assert len(right) == 5
    assert result.flaws["status invalid"] == result.flaws["status truncated"] == 5
    assert sum(result.errors.values()) == 5
    assert all(kind.startswith("http 5") for kind in result.errors)
    told = result.summary()
    assert (told["sent"], told["answered"], told["right"]) == (20, 15, 5)


def stalling(after: int) -> ScriptedEngine:
    """Does nothing for STALL_S from its request number ``after`` on."""
    numbers, until = count(), [0.0]

    def reply(_: GenerationRequest) -> Reply:
        if next(numbers) == after:
            until[0] = time.monotonic() + STALL_S
        left_s = max(0.0, until[0] - time.monotonic())
        return Reply(TRIANGLE, token_length=len(TRIANGLE), delay_s=left_s)

    return ScriptedEngine(reply)


def test_an_open_loop_charges_a_stall_to_all_that_were_due(questions: list[Question]) -> None:
    load = Load("constant", 20, duration_s=4, warmup_s=0)
    with serving(stalling(after=10), max_queued_requests=500) as url:
        result = run_load(Target(url), questions, load)
    with serving(stalling(after=10)) as url:
        one_user = run_load(Target(url), questions, closed(1, 20))
    assert not result.errors
    assert len(result.samples) == 80

    def slow(found: LoadResult) -> list[Sample]:
        return [sample for sample in found.samples if sample.latency_s > STALL_S / 4]

    # A user who waits for the answer is held up once; all that were due meanwhile were.
    assert len(slow(one_user)) < len(slow(result)) / 5
    held = slow(result)
    due, latency = ([getattr(one, name) for one in held] for name in ("due_s", "latency_s"))
    assert max(latency) > STALL_S / 2
    # Who was due later had less of it to wait for.
    assert np.corrcoef(due, latency)[0, 1] < -0.5


def test_what_a_full_server_holds_back_counts_from_when_it_was_due(
    questions: list[Question],
) -> None:
    """Also where requests wait in the generator, for want of connections."""
    engine = ScriptedEngine([Reply(TRIANGLE, token_length=99, delay_s=0.2)])
    load = Load("constant", 20, duration_s=1, warmup_s=0, max_connections=1)
    with serving(engine) as url:
        result = run_load(Target(url), questions, load)
    latencies = [one.latency_s for one in sorted(result.samples, key=lambda one: one.due_s)]
    assert latencies[-1] > 5 * latencies[0]
    assert result.elapsed_s > 2 * load.duration_s


def test_a_generator_that_is_late_counts_from_when_it_was_due(questions: list[Question]) -> None:
    held_up: list[float] = []

    def hold_up(_: Any) -> None:
        if not held_up:
            held_up.append(1.0)
            time.sleep(1.0)

    load = Load("constant", 20, duration_s=1.5, warmup_s=0)
    with serving(ScriptedEngine([TRIANGLE])) as url:
        result = run_load(Target(url), questions, load, tell=hold_up)
    times = result.times_ms()
    assert times["latency_ms"] is not None
    assert times["send_lag_ms"] is not None
    assert times["latency_ms"]["max"] > times["send_lag_ms"]["max"] > 500


def test_goodput_counts_what_is_right_and_in_time(questions: list[Question]) -> None:
    replies = {"the slow": Reply("[]", delay_s=2), "the wrong": Reply("well")}
    asked = asking(questions[0], "the slow", "the fast", "the wrong")
    with serving(by_phrase(replies)) as url:
        result = run_load(Target(url), asked, closed(6, 12, slo_ms=1000))
    assert (len(result.good), sum(one.is_right for one in result.samples)) == (4, 8)
    assert result.good_share == 4 / 12
    assert result.goodput_per_s == pytest.approx(4 / result.elapsed_s)
    assert result.masks_per_s == pytest.approx(8 / result.elapsed_s)


def test_answers_must_be_the_golden_one(questions: list[Question]) -> None:
    def flaws(rules: Rules, **extra: Any) -> tuple[int, int]:
        with serving(ScriptedEngine([TRIANGLE, TRIANGLE, OTHER])) as url:
            target = Target(url, extra=extra)
            result = run_load(target, questions[:1], closed(1, 6), checker=Checker(rules))
        return result.flaws["not the golden answer"], result.golden_changed

    assert flaws(Rules()) == (4, 4)
    assert flaws(Rules(golden_iou=0.5)) == (0, 4)
    assert flaws(Rules(), temperature=0.7) == (0, 0)


def test_loads_that_share_a_checker_are_compared(questions: list[Question]) -> None:
    checker = Checker()
    for text, flaws in ((TRIANGLE, 0), (OTHER, 2)):
        with serving(ScriptedEngine([text])) as url:
            result = run_load(Target(url), questions[:1], closed(1, 2), checker=checker)
        assert sum(result.flaws.values()) == flaws


@pytest.mark.parametrize("endpoint", ["segment", "chat"])
def test_answers_are_held_to_the_truth(questions: list[Question], endpoint: Endpoint) -> None:
    truth = region_to_rle(parse_region(TRIANGLE).value, ImageSize(64, 96))
    asked = [Question("a", questions[0].image, {"prompts": ["it"]}, (truth,))]
    wrong = Checker(Rules(truth_iou=0.9))
    with serving(ScriptedEngine([TRIANGLE])) as url:
        target = Target(url, endpoint, model="scripted")
        assert run_load(target, asked, closed(1, 2)).mean_truth_iou == 1
    with serving(ScriptedEngine(["[]"])) as url:
        target = Target(url, endpoint, model="scripted")
        result = run_load(target, asked, closed(1, 2), checker=wrong)
    assert result.mean_truth_iou == 0
    assert result.flaws == {"far from the truth": 2}


@pytest.mark.parametrize("endpoint", ["segment", "chat"])
@pytest.mark.parametrize("stream", [False, True])
def test_times_come_in_order(questions: list[Question], endpoint: Endpoint, stream: bool) -> None:
    engine = ScriptedEngine([Reply(TRIANGLE, delay_s=0.02)])
    with serving(engine) as url:
        target = Target(url, endpoint, stream, model="scripted")
        result = run_load(target, questions, closed(2, 8))
    assert sum(sample.is_right for sample in result.samples) == 8
    tokens = 1 + -(-len(TRIANGLE) // 4)
    for sample in result.samples:
        assert sample.tokens == tokens
        assert sample.first_byte_s is not None
        assert sample.due_s <= sample.sent_s <= sample.first_byte_s <= sample.done_s
        if stream:
            assert sample.first_point_s is not None
            assert sample.first_byte_s <= sample.first_point_s < sample.done_s
        if stream and endpoint == "chat":
            assert sample.first_token_s is not None
            assert sample.first_point_s is not None
            assert sample.first_token_s < sample.first_point_s
    told = result.summary()
    has_tokens = stream or endpoint == "segment"
    assert (told["per_token_ms"] is not None) == has_tokens
    assert (told["first_point_ms"] is not None) == stream
    assert told["latency_ms"]["p50"] <= told["latency_ms"]["p99_9"] <= told["latency_ms"]["max"]


def test_the_histogram_is_one_that_other_tools_read(questions: list[Question]) -> None:
    from hdrh.histogram import HdrHistogram

    with serving(ScriptedEngine([TRIANGLE])) as url:
        result = run_load(Target(url), questions, closed(2, 10))
    read = HdrHistogram.decode(result.summary()["latency_hdr"])
    assert read.get_total_count() == 10
    slowest_us = 1e6 * max(sample.latency_s for sample in result.samples)
    assert read.get_max_value() == pytest.approx(slowest_us, rel=2e-3)


def test_what_is_due_while_warming_up_does_not_count(questions: list[Question]) -> None:
    engine = ScriptedEngine([TRIANGLE])
    load = Load("constant", 20, duration_s=1, warmup_s=0.5)
    with serving(engine) as url:
        result = run_load(Target(url), questions, load)
    assert (len(engine.requests), len(result.samples)) == (30, 20)
    assert min(sample.due_s for sample in result.samples) == 0.5


def test_errors_have_their_kinds(questions: list[Question]) -> None:
    hang = ScriptedEngine([Reply("[]", fault="hang")])
    with serving(hang) as url:
        held = run_load(Target(url, timeout_s=0.5), questions, closed(2, 2))
    assert held.errors == {"timeout": 2}
    assert run_load(Target(url), questions, closed(1, 2)).errors == {"no connection": 2}
    with serving(ScriptedEngine([Reply("[]", delay_s=0.2)]), max_queued_requests=0) as url:
        full = run_load(Target(url), questions, closed(32, 64))
    assert full.errors.total() == full.errors["http 503 overloaded"] > 0
    assert full.summary()["errors"] == dict(full.errors)
    with serving(ScriptedEngine([Reply(TRIANGLE, fault="error", fault_after=9)])) as url:
        broken = run_load(Target(url, stream=True), questions, closed(1, 2))
        keyless = run_load(Target(url, extra={"max_pints": 3}), questions, closed(1, 1))
    assert sum(one.is_right for one in broken.samples) == 0
    assert keyless.errors.total() == 1
    assert next(iter(keyless.errors)).startswith("http 4")


def with_capacity(per_s: float) -> ScriptedEngine:
    reply = Reply(TRIANGLE, token_length=len(TRIANGLE), delay_s=1 / per_s)
    one_at_a_time = Capabilities("scripted", "scripted", TARGETS, 4096, 1, 2048 * 2048)
    return ScriptedEngine([reply], capabilities=one_at_a_time)


def test_a_ramp_ends_beyond_what_the_server_can_do(questions: list[Question]) -> None:
    ramp, load = Ramp(2, factor=3), Load("constant", 1, duration_s=1.5, warmup_s=0, slo_ms=500)
    with serving(with_capacity(12), max_queued_requests=2000) as url:

        async def measure(rate: float) -> LoadResult:
            return await run_load_async(Target(url), questions, load.at(rate))

        results = asyncio.run(climb(ramp, measure))
    best = capacity(ramp, results)
    assert best is not None
    assert best.load.level < max(result.load.level for result in results) < 2 * 3**6
    assert best.goodput_per_s < 14


def fake(rate: float, can: float) -> LoadResult:
    """As of a server that can do ``can`` requests per second in time, fewer when overloaded."""
    sent, load = 1000, Load("constant", rate, duration_s=1000 / rate, warmup_s=0, slo_ms=100)
    good = sent if rate <= can else int(sent * (can / rate) ** 2)
    times = [(number / rate, 0.01 if number < good else 1.0) for number in range(sent)]
    samples = tuple(Sample(due, due, due + latency, 1) for due, latency in times)
    return LoadResult(Target(), load, 0.0, samples, 0.0, 0.0, 0.0, 0, 0, None)


@pytest.mark.parametrize(("start", "can"), [(1, 10), (1, 1.2), (4, 100)])
def test_a_ramp_finds_capacity(start: float, can: float) -> None:
    async def measure(rate: float) -> LoadResult:
        return fake(rate, can)

    ramp = Ramp(start)
    results = asyncio.run(climb(ramp, measure))
    best = capacity(ramp, results)
    assert best is not None
    assert can / 1.2 < best.load.level <= 1.03 * can
    rates = [result.load.level for result in results]
    assert rates[: -ramp.refine] == sorted(rates[: -ramp.refine])


def test_a_ramp_that_starts_too_high_says_so_or_looks_lower() -> None:
    async def measure(rate: float) -> LoadResult:
        return fake(rate, 2.0)

    assert capacity(Ramp(100), asyncio.run(climb(Ramp(100), measure))) is None
    assert capacity(Ramp(4), asyncio.run(climb(Ramp(4), measure))) is not None


@pytest.mark.parametrize("mode", ["poisson", "constant"])
def test_arrivals_have_the_rate(mode: Any) -> None:
    due = [at for at, _ in zip(arrivals(Load(mode, 50.0, seed=7)), range(4000), strict=False)]
    gaps = np.diff(due)
    assert np.mean(gaps) == pytest.approx(1 / 50, rel=0.1)
    # The gaps of a Poisson process vary as much as they are long.
    spread = np.std(gaps) / np.mean(gaps)
    assert spread == pytest.approx(1.0 if mode == "poisson" else 0.0, abs=0.1)
    again = arrivals(Load(mode, 50.0, seed=7))
    assert [next(again) for _ in range(5)] == due[:5]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Load("closed", 1.5),
        lambda: Load("poisson", 0),
        lambda: Load("constant", 1, duration_s=0),
    ],
)
def test_no_load_is_refused(make: Callable[[], Load]) -> None:
    with pytest.raises(ValueError, match=r"rate|duration"):
        make()
