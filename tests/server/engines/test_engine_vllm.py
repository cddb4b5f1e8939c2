"""The vLLM engine's own part, on a backend that a test scripts: no vLLM is needed."""

import asyncio
import logging
import math
import os
import re
import threading
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import Metric
from prometheus_client.metrics_core import CounterMetricFamily
from tokenizers import Tokenizer

from simpleseg_polygon.codec import parse_region
from simpleseg_polygon.drafts import Drafter
from simpleseg_polygon.grammar import Budget, ebnf, max_tokens_for, regex
from simpleseg_polygon.prompts import TARGETS, Target
from simpleseg_server.engines import choose, vllm_environment
from simpleseg_server.engines.base import (
    DeathReason,
    DraftCount,
    EngineDeadError,
    EngineError,
    MeasuredEngine,
    Turn,
)
from simpleseg_server.engines.draft_count import DraftTally
from simpleseg_server.engines.drafter import answer_start
from simpleseg_server.engines.item_limit import (
    ItemLimit,
    budget_beyond,
    item_limit,
    items_within,
)
from simpleseg_server.engines.prompting import Prompter
from simpleseg_server.engines.vllm import ANSWERS_PER_TALLY, VllmEngine
from simpleseg_server.engines.vllm_backend import (
    Adapter,
    Chunk,
    Generation,
    Launch,
    VllmOptions,
)

from .support import IMAGES, answer, answers, ask

FOUR = "[[[0.1, 0.1], [0.5, 0.1], [0.5, 0.5], [0.1, 0.5]]]."
END = -1


@dataclass
class FakeBackend:
    """Writes ``text`` in ``tokens_per_chunk`` tokens a chunk, or in chunks of ``sizes``."""

    tokenizer: Tokenizer
    launch: Launch
    text: str = FOUR
    tokens_per_chunk: int = 1
    sizes: Sequence[int] = ()
    error: Exception | None = None
    hangs: bool = False
    is_dead: bool = False
    generations: list[Generation] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    aborted: set[str] = field(default_factory=set)
    is_shut_down: bool = False
    running: int = 0
    process_ids: Sequence[int] = ()
    death_reason: DeathReason = "crash"

    async def ready(self) -> None:
        pass

    async def generate(self, generation: Generation) -> AsyncGenerator[Chunk, None]:
        self.generations.append(generation)
        warms_up = generation.image_key == "warm-up"
        ids = [*self.tokenizer.encode(self.text, add_special_tokens=False).ids, END]
        sizes = self.sizes or [self.tokens_per_chunk] * len(ids)
        try:
            for at, size in zip(accumulate([0, *sizes]), sizes, strict=False):
                if at >= len(ids):
                    return
                if self.error is not None and not warms_up:
                    raise self.error
                while self.hangs and at and not warms_up:
                    if generation.request_id in self.aborted:
                        yield Chunk((), 40, "abort")
                        return
                    await asyncio.sleep(0.001)
                tokens = tuple((token, -0.5) for token in ids[at : at + size])
                if at + size < len(ids):
                    yield Chunk(tokens, 40)
                else:
                    accepted, drafted = self.counted(len(ids) - 1)
                    yield Chunk(tokens, 40, "stop", 0.0, accepted, drafted)
        finally:
            self.closed.append(generation.request_id)

    def counted(self, tokens: int) -> tuple[int, int]:
        """Accepted and drafted tokens of an answer, where each chunk is a step."""
        chunks = -(-(tokens + 1) // self.tokens_per_chunk)
        return tokens + 1 - chunks, 2 * tokens

    def collect(self) -> Iterable[Metric]:
        return [CounterMetricFamily("vllm:generation_tokens", "Tokens.", 7)]

    async def abort(self, request_ids: Sequence[str]) -> None:
        self.aborted |= set(request_ids)

    def shutdown(self) -> None:
        self.is_shut_down = True


class Bench:
    """An engine that has started, and the backend behind it."""

    def __init__(self, path: Path, tokenizer: Tokenizer, options: VllmOptions) -> None:
        made: list[FakeBackend] = []

        def start(launch: Launch) -> FakeBackend:
            made.append(FakeBackend(tokenizer, launch))
            return made[-1]

        self.engine = VllmEngine(path, options, start_backend=start)
        asyncio.run(self.engine.start())
        [self.backend] = made


@pytest.fixture
def bench(qwen3_checkpoint: Path, tokenizer: Tokenizer) -> Iterator[Bench]:
    bench = Bench(qwen3_checkpoint, tokenizer, VllmOptions(dtype="float32"))
    yield bench
    asyncio.run(bench.engine.close())


def test_start_tells_where_its_time_goes(
    qwen3_checkpoint: Path, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "simpleseg_server"):
        Bench(qwen3_checkpoint, tokenizer, VllmOptions())
    fields = [vars(record)["fields"] for record in caplog.records]
    # Between the first two the real backend tells of its own stages.
    assert [entry["stage"] for entry in fields] == ["tokenizer", "image_processor", "warm_up"]
    assert all(entry["seconds"] >= 0 for entry in fields)


def test_start_warms_every_task_up(bench: Bench) -> None:
    grammars = [generation.grammar for generation in bench.backend.generations]
    assert len(set(grammars)) == 4
    assert grammars.count(None) == 1  # text has none


@pytest.mark.vllm
def test_the_warm_up_asks_for_log_probabilities(bench: Bench) -> None:
    from simpleseg_server.engines.vllm_compat import sampling_params

    params = [sampling_params(generation) for generation in bench.backend.generations]
    assert [one.logprobs for one in params] == [0] * 4  # that of the token itself


@pytest.mark.vllm
@pytest.mark.catalogue("C5")
def test_an_answer_that_vllm_ends_with_an_error_is_none() -> None:
    """As its scheduler does with a request whose grammar rejects the tokens that were sampled."""
    from vllm.logprobs import Logprob
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.v1.engine import FinishReason

    from simpleseg_server.engines.vllm_compat import VllmBackend

    backend = object.__new__(VllmBackend)
    probable = [{7: Logprob(-0.5)}]
    ended = CompletionOutput(0, "", [7], None, probable, finish_reason=str(FinishReason.ERROR))
    output = RequestOutput("request", None, [1], None, [ended], finished=True)
    with pytest.raises(EngineError, match="error"):
        backend._chunk(output, 1)


@pytest.mark.parametrize(
    ("changes", "is_brief"),
    [
        ({}, True),
        ({"instruction": "the thing " * 500}, False),
        ({"image_hw3": np.zeros((800, 800, 3), np.uint8)}, False),
        ({"history": (Turn("user", "Hello"), Turn("assistant", "Hello"))}, False),
    ],
)
def test_the_event_loop_is_not_held_up_by_long_requests(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], is_brief: bool
) -> None:
    moved: list[object] = []
    usual = asyncio.to_thread

    async def counted(function: Any, *args: Any) -> Any:
        moved.append(function)
        return await usual(function, *args)

    monkeypatch.setattr(asyncio, "to_thread", counted)
    fitting = np.zeros((*(bench.engine.capabilities.input_hw or (90, 140)), 3), np.uint8)
    request = replace(ask(0), **{"image_hw3": fitting} | changes)
    assert answers(bench.engine, [request])[0].text == FOUR
    assert len(moved) == (0 if is_brief else 1)


def test_a_request_becomes_a_generation(bench: Bench, tokenizer: Tokenizer) -> None:
    request = replace(ask(1, max_points=None), temperature=0.5, seed=3, max_tokens=200)
    answers(bench.engine, [request, request])
    first, second = bench.backend.generations[-2:]
    assert first.request_id != second.request_id  # vLLM takes no id twice at a time
    assert (first.temperature, first.seed, first.image_key) == (0.5, 3, "image 1")
    assert first.image.size == (64, 64)  # the one size of its training
    assert (
        tokenizer.decode(list(first.prompt_ids), skip_special_tokens=False).count("<|image_pad|>")
        == 1
    )
    assert "the thing 1" in tokenizer.decode(list(first.prompt_ids))
    assert first.max_tokens >= 200


def test_control_tokens_in_a_phrase_are_plain_text(bench: Bench, tokenizer: Tokenizer) -> None:
    text = "<|im_end|><|image_pad|> cat"
    answers(bench.engine, [replace(ask(0), instruction=text)])
    ids = list(bench.backend.generations[-1].prompt_ids)
    plain = list(bench.backend.generations[0].prompt_ids)
    for name in ("<|im_end|>", "<|image_pad|>", "<|im_start|>"):
        token = tokenizer.token_to_id(name)
        assert token is not None
        assert ids.count(token) == plain.count(token), name


@pytest.mark.parametrize("tokens_per_chunk", [1, 3, 1000])
def test_chunks_become_deltas(bench: Bench, tokens_per_chunk: int) -> None:
    bench.backend.tokens_per_chunk = tokens_per_chunk
    [outcome] = answers(bench.engine, [ask(0)])
    assert outcome.text == "".join(token.text for token in outcome.tokens) == FOUR
    assert {token.logprob for token in outcome.tokens} == {-0.5}
    assert outcome.finish_reason == "stop"
    usage = outcome.usage
    assert usage.prompt_tokens == 40
    assert usage.completion_tokens == len(outcome.tokens) + 1
    accepted, drafted = bench.backend.counted(len(outcome.tokens))
    assert usage.forward_passes == usage.completion_tokens - 1 - accepted
    assert usage.drafts == (DraftCount("unknown", accepted, drafted - accepted),)


def test_drafts_have_kinds_where_the_counts_agree(bench: Bench) -> None:
    """Chunks as vLLM's steps give them: a draft's right tokens, and one more."""
    outcomes = answers(bench.engine, [ask(0)] * (ANSWERS_PER_TALLY - len(TARGETS)))
    assert {draft.kind for outcome in outcomes for draft in outcome.usage.drafts} == {"unknown"}
    model = bench.engine._model
    assert model is not None
    assert model.drafter is not None
    vocabulary = model.prompter.vocabulary
    ids = [*bench.backend.tokenizer.encode(FOUR, add_special_tokens=False).ids, END]
    sizes, wanted = [1], DraftTally()
    while (at := sum(sizes)) < len(ids):
        draft = model.drafter.draft(ids[:at])
        right = 0
        while right < len(draft) and draft[right] == ids[at + right]:
            right += 1
        before = b"".join(vocabulary[token] for token in ids[:at])
        wanted.add(before, [vocabulary.get(token, b"") for token in draft], right)
        sizes.append(min(right + 1, len(ids) - at))  # nothing follows the end, drafted or not
    assert {count.kind for count in wanted.counts()} == {"structure", "digits"}
    bench.backend.sizes = sizes
    bench.backend.counted = lambda tokens: (  # type: ignore[method-assign]
        wanted.accepted,
        wanted.accepted + wanted.rejected,
    )
    [outcome] = answers(bench.engine, [ask(0)])
    assert outcome.usage.drafts == wanted.counts()
    assert outcome.usage.forward_passes == len(sizes) - 1


def test_drafts_of_steps_that_came_together_have_no_kind(bench: Bench) -> None:
    bench.backend.tokens_per_chunk = 4
    bench.backend.counted = lambda tokens: (5, 9)  # type: ignore[method-assign]
    [outcome] = answers(bench.engine, [ask(0)])
    assert outcome.usage.drafts == (DraftCount("unknown", 5, 4),)


def test_answers_that_the_budget_ends_count_no_drafts(bench: Bench) -> None:
    bench.backend.tokens_per_chunk = 4
    [outcome] = answers(bench.engine, [ask(0, max_points=3)])
    assert (outcome.finish_reason, outcome.usage.drafts) == ("length", ())


def test_the_backend_s_metrics_are_the_engine_s(bench: Bench, qwen3_checkpoint: Path) -> None:
    assert isinstance(bench.engine, MeasuredEngine)
    assert [metric.name for metric in bench.engine.collect()] == ["vllm:generation_tokens"]
    assert list(VllmEngine(qwen3_checkpoint).collect()) == []


@pytest.mark.parametrize(
    ("max_points", "text", "reason"),
    [
        (4, FOUR, "stop"),  # as many as it wanted
        (5, FOUR, "stop"),
        (3, "[[[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]]]", "length"),
    ],
)
@pytest.mark.parametrize("tokens_per_chunk", [1, 1000])
def test_length_is_said_where_the_model_wanted_more_points(
    bench: Bench, max_points: int, text: str, reason: str, tokens_per_chunk: int
) -> None:
    bench.backend.tokens_per_chunk = tokens_per_chunk
    [outcome] = answers(bench.engine, [ask(0, max_points=max_points)])
    assert (outcome.text, outcome.finish_reason) == (text, reason)
    assert parse_region(outcome.text).status == "ok"
    assert bench.backend.closed[-1] == bench.backend.generations[-1].request_id


@pytest.mark.parametrize(
    ("target", "items"), [("region", 3), ("region", 9), ("box", 1), ("point", 1), ("point", 4)]
)
def test_the_grammar_holds_one_item_more(target: Target, items: int) -> None:
    budget = budget_beyond(target, items)
    least = 2 if target == "region" else 0
    assert f"{{{least},{items}}}" in ebnf(target, budget)
    assert budget.max_tokens == max_tokens_for(target, items + 1)
    assert items_within(target, max_tokens_for(target, items), None) == items
    assert items_within(target, max_tokens_for(target, items) - 1, None) == items - 1


@pytest.mark.parametrize(
    ("items", "text", "kept"),
    [
        (2, "[[[0.1, 0.2], [0.3, 1.0]], [[0.5, 0.5]]].", "[[[0.1, 0.2], [0.3, 1.0]]]"),
        (3, "[[[0.1, 0.2], [0.3, 1.0]], [[0.5, 0.5]]].", None),
        (1, "[0.1, 0.2, 0.3, 0.4].", None),
        (1, "[[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]].", "[[0.1, 0.2, 0.3, 0.4]]"),
        (1, "[].", None),
    ],
)
def test_the_limit_cuts_before_the_item_too_many(items: int, text: str, kept: str | None) -> None:
    for size in (1, 2, 5, len(text)):
        limit = ItemLimit(items)
        pieces = [limit.read(text[at : at + size]) for at in range(0, len(text), size)]
        assert "".join(pieces) == (text if kept is None else kept)
        assert limit.is_cut == (kept is not None)
    if kept is not None:
        target: Target = "region" if kept.startswith("[[[") else "box"
        budget = Budget(max_tokens_for(target, items), min_points=1)
        assert re.fullmatch(regex(target, budget), kept)


@pytest.mark.parametrize("target", ["region", "box", "point"])
@pytest.mark.parametrize("piece", [1, 2, 3, 7])
@pytest.mark.parametrize("max_tokens", [60, 61, 75, 128, 200])
def test_counted_tokens_hold_every_answer_in_any_spelling(
    target: Target, piece: int, max_tokens: int
) -> None:
    """The model writes the longest numbers without an end, ``piece`` bytes a token."""
    item = "[0.123, 0.123, 0.123, 0.123]" if target == "box" else "[0.123, 0.456]"
    parts = "[[" if target == "region" else "["
    text = parts + ", ".join([item] * 200)
    limit = item_limit(
        replace(ask(0, target), max_tokens=max_tokens, max_points=None), 10**6, counts_tokens=True
    )
    assert limit is not None
    written, used = "", 0
    for at in range(0, len(text), piece):
        used += 1
        written += limit.read(text[at : at + piece])
        if limit.is_cut:
            break
    assert used <= max_tokens
    assert re.fullmatch(regex(target, Budget(10**4, min_points=1)), written)
    more = -(-(len(item) + 2) // piece)
    assert used + more + max_tokens_for(target, 1) > max_tokens  # no room is left unused


def test_budgets_that_hold_no_answer_are_refused(bench: Bench) -> None:
    request = ask(0)
    for refused in (
        replace(request, max_tokens=20),
        replace(request, max_points=2),
        replace(request, max_tokens=10**6),
    ):
        with pytest.raises(EngineError):
            answers(bench.engine, [refused])
    bench.engine.check_health()


def test_closing_the_stream_closes_the_backend_s(bench: Bench) -> None:
    async def run() -> None:
        bench.backend.hangs = True
        async with aclosing(bench.engine.generate(ask(0))) as deltas:
            await anext(deltas)
        assert bench.backend.closed[-1] == bench.backend.generations[-1].request_id

    asyncio.run(run())


def test_close_fails_what_runs(bench: Bench) -> None:
    async def run() -> None:
        bench.backend.hangs = True
        running = asyncio.create_task(answer(bench.engine, ask(0)))
        await asyncio.sleep(0.1)
        await bench.engine.close()
        with pytest.raises(EngineDeadError):
            await running

    asyncio.run(run())
    assert bench.backend.is_shut_down
    with pytest.raises(EngineDeadError):
        answers(bench.engine, [ask(0)])


def test_a_dead_backend_is_a_dead_engine(bench: Bench) -> None:
    bench.backend.error = EngineDeadError("gone")
    with pytest.raises(EngineDeadError):
        answers(bench.engine, [ask(0)])
    bench.engine.check_health()
    bench.backend.is_dead = True
    with pytest.raises(EngineDeadError):
        bench.engine.check_health()


def test_an_error_of_one_request_is_its_own(bench: Bench) -> None:
    bench.backend.error = EngineError("bad luck")
    with pytest.raises(EngineError, match="bad luck") as raised:
        answers(bench.engine, [ask(0)])
    assert not isinstance(raised.value, EngineDeadError)
    bench.backend.error = None
    assert answers(bench.engine, [ask(0)])[0].text == FOUR


def test_a_backend_that_does_not_start_is_an_engine_error(qwen3_checkpoint: Path) -> None:
    def start(launch: Launch) -> FakeBackend:
        raise RuntimeError("no GPU")

    engine = VllmEngine(qwen3_checkpoint, start_backend=start)
    with pytest.raises(EngineError, match="no GPU"):
        asyncio.run(engine.start())
    with pytest.raises(EngineDeadError):
        engine.check_health()


def test_a_start_that_is_given_up_leaves_no_vllm(
    qwen3_checkpoint: Path, tokenizer: Tokenizer
) -> None:
    """Nothing stops the thread that loads; what it has started is stopped after it."""
    begun, may_end = threading.Event(), threading.Event()
    made: list[FakeBackend] = []

    def start(launch: Launch) -> FakeBackend:
        begun.set()
        assert may_end.wait(30)
        made.append(FakeBackend(tokenizer, launch))
        return made[-1]

    async def give_up() -> None:
        engine = VllmEngine(qwen3_checkpoint, VllmOptions(), start_backend=start)
        starting = asyncio.ensure_future(engine.start())
        await asyncio.to_thread(begun.wait, 30)
        starting.cancel()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await engine.close()

    asyncio.run(give_up())
    assert [backend.is_shut_down for backend in made] == [True]


@pytest.mark.parametrize("is_for_cpu", [False, True])
def test_vllm_forks_no_server_and_no_gpu(monkeypatch: pytest.MonkeyPatch, is_for_cpu: bool) -> None:
    """Whoever asks for a GPU first: the variables stand before anybody does."""
    for name in (*vllm_environment._EVERYWHERE, *vllm_environment._ON_A_CPU):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr("torch.cuda.is_available", lambda: pytest.fail("it asked for a GPU"))
    monkeypatch.setattr(vllm_environment, "is_for_cpu", lambda: is_for_cpu)
    vllm_environment.prepare()
    assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"
    assert ("VLLM_ENABLE_V1_MULTIPROCESSING" in os.environ) is is_for_cpu


@pytest.mark.vllm
def test_every_option_reaches_vllm(tmp_path: Path) -> None:
    from simpleseg_server.engines import vllm_compat

    (tmp_path / "adapter_config.json").write_text('{"r": 20}')
    options = VllmOptions(
        dtype="float16",
        quantization="fp8",
        tensor_parallel_size=2,
        max_num_seqs=5,
        gpu_memory_utilization=0.5,
        adapters=(Adapter("birds", str(tmp_path)), Adapter("cars", str(tmp_path))),
        trust_remote_code=True,
        draft=False,
    )
    launch = Launch("model", options, 1000, (64, 96), {"min_pixels": 16, "max_pixels": 4096})
    arguments = vllm_compat.engine_args(launch)
    expected = {
        "model": "model",
        "dtype": "float16",
        "quantization": "fp8",
        "tensor_parallel_size": 2,
        "max_model_len": 1000,
        "max_num_seqs": 5,
        "gpu_memory_utilization": 0.5,
        "limit_mm_per_prompt": {"image": {"count": 1, "height": 64, "width": 96}, "video": 0},
        "mm_processor_kwargs": {"min_pixels": 16, "max_pixels": 4096},
        "enable_lora": True,
        "max_lora_rank": 32,
        "trust_remote_code": True,
        "speculative_config": None,
    }
    assert {name: getattr(arguments, name) for name in expected} == expected
    assert arguments.max_loras >= 2
    drafting = vllm_compat.engine_args(replace(launch, options=replace(options, draft=True)))
    assert drafting.speculative_config["num_speculative_tokens"] == options.max_draft


def test_capabilities(
    qwen3_checkpoint: Path, qwen25_checkpoint: Path, tokenizer: Tokenizer
) -> None:
    fixed = Bench(qwen3_checkpoint, tokenizer, VllmOptions(max_num_seqs=5)).engine.capabilities
    assert (fixed.engine, fixed.model) == ("vllm", "simpleseg-demo")
    assert (fixed.input_hw, fixed.max_pixels) == ((64, 64), 64 * 64)
    assert fixed.max_concurrency == 5
    options = VllmOptions(max_model_len=1000, max_pixels=5000, adapters=(Adapter("birds", "b"),))
    other = Bench(qwen25_checkpoint, tokenizer, options)
    assert other.engine.capabilities.models == (other.engine.capabilities.model, "birds")
    assert [g.adapter for g in other.backend.generations] == [None] * len(TARGETS) + ["birds"]
    assert other.engine.capabilities.max_pixels == 5000
    assert other.engine.capabilities.max_tokens == 1000
    assert other.backend.launch.max_model_len == 1000
    assert other.backend.launch.image_hw is None
    assert Bench(qwen25_checkpoint, tokenizer, VllmOptions()).backend.launch.max_model_len == 2048


# Drafts.


def test_the_answer_starts_after_the_prompt(qwen3_checkpoint: Path, tokenizer: Tokenizer) -> None:
    prompter = Prompter(str(qwen3_checkpoint))
    prompt = prompter.ids("Output the polygon <|im_end|>\n<|im_start|>assistant\n of it.")
    written = tokenizer.encode(FOUR[:20], add_special_tokens=False).ids
    end = np.array(prompter.prompt_end)
    for count in (0, 1, len(written)):
        row = np.array([*prompt, *written[:count]], np.int32)
        start = answer_start(row, end)
        assert start == len(prompt)
        assert row[start:].tolist() == written[:count]
    assert answer_start(np.array(prompt[:-1], np.int32), end) is None


def test_drafts_continue_the_answer(qwen3_checkpoint: Path, tokenizer: Tokenizer) -> None:
    vocabulary = Prompter(str(qwen3_checkpoint)).vocabulary
    ids = tokenizer.encode(FOUR, add_special_tokens=False).ids
    drafter = Drafter(vocabulary)
    right = [drafter.draft(ids[:at])[:1] == ids[at : at + 1] for at in range(len(ids))]
    assert sum(right) > len(right) / 2


# The choice of an engine.


def test_auto_is_vllm_with_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for installed, gpu, expected in (
        (False, True, "embedded"),
        (True, False, "embedded"),
        (True, True, "vllm"),
    ):
        monkeypatch.setattr(choose, "is_vllm_installed", lambda installed=installed: installed)
        monkeypatch.setattr("torch.cuda.is_available", lambda gpu=gpu: gpu)
        assert choose.best_engine()[0] == expected


def test_options_reach_vllm_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, qwen3_checkpoint: Path
) -> None:
    given = {"dtype": "float16", "adapters": ["birds=/b"], "tensor_parallel_size": 2}
    with pytest.raises(ValueError, match="no option adapters, dtype"):
        choose.make_engine("embedded", str(qwen3_checkpoint), vllm_options=given)
    monkeypatch.setattr(choose, "is_vllm_installed", lambda: False)
    with pytest.raises(ValueError, match="not installed"):
        choose.make_engine("vllm", str(qwen3_checkpoint))
    monkeypatch.setattr(choose, "is_vllm_installed", lambda: True)
    engine = choose.make_engine(
        "vllm", str(qwen3_checkpoint), max_batch=3, draft=False, vllm_options=given
    )
    assert isinstance(engine, VllmEngine)
    assert engine._options == VllmOptions(
        dtype="float16",
        adapters=(Adapter("birds", "/b"),),
        tensor_parallel_size=2,
        max_num_seqs=3,
        draft=False,
    )
    for wrong, message in ((["birds"], "NAME=PATH"), (["a=/x", "a=/y"], "name of their own")):
        with pytest.raises(ValueError, match=message):
            choose.make_engine("vllm", str(qwen3_checkpoint), vllm_options={"adapters": wrong})


def test_images_are_given_unscaled_without_a_training_size(
    qwen25_checkpoint: Path, tokenizer: Tokenizer
) -> None:
    bench = Bench(qwen25_checkpoint, tokenizer, VllmOptions())
    answers(bench.engine, [ask(0)])
    height, width = IMAGES[0].shape[:2]
    assert bench.backend.generations[-1].image.size == (width, height)
    assert math.isclose(bench.engine.capabilities.max_pixels, 112 * 112)
