"""What every engine keeps to, whatever runs the model: the Engine protocol's own words."""

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from simpleseg_polygon.grammar import Budget, max_tokens_for, regex
from simpleseg_polygon.prompts import TARGETS, Target
from simpleseg_server.engines import choose
from simpleseg_server.engines.base import (
    Engine,
    EngineDeadError,
    EngineError,
    GenerationRequest,
)
from simpleseg_server.engines.remote import RemoteEngine
from simpleseg_server.engines.scripted import ScriptedEngine
from simpleseg_server.engines.transformers import TransformersEngine
from simpleseg_server.engines.vllm import VllmEngine
from simpleseg_server.engines.vllm_backend import VllmOptions
from simpleseg_server.supervision.process import ProcessEngine
from simpleseg_server.supervision.supervisor import SupervisedEngine

from .conftest import IMAGE_PX
from .fake_upstream import FakeUpstream, Plan
from .remote_support import options, usual
from .support import Outcome, answer, ask
from .vllm_process import VllmProcess

T = TypeVar("T")
MakeEngine = Callable[[], Engine]

SCRIPTED = {
    "region": "[[[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]]].",
    "box": "[0.1, 0.1, 0.5, 0.5].",
    "point": "[0.25, 0.75].",
    "text": "a thing",
}


def is_in_the_language(target: Target, text: str) -> bool:
    """Whether the grammar could have let this answer through, whatever its shape is worth."""
    budget = Budget(max_tokens_for(target, 200), min_points=1)
    return re.fullmatch(regex(target, budget), text) is not None


@dataclass(frozen=True)
class Running:
    """A started engine and the event loop that it lives on; ``make`` makes another one."""

    engine: Engine
    make: MakeEngine
    runner: asyncio.Runner

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(asyncio.wait_for(work, 120))

    def ask(self, *requests: GenerationRequest) -> list[Outcome]:
        """All at once."""

        async def together() -> list[Outcome]:
            return await asyncio.gather(*(answer(self.engine, one) for one in requests))

        return self.run(together())


def _script(request: GenerationRequest) -> str:
    return SCRIPTED[request.target]


@contextmanager
def _maker(name: str, checkpoint: Path, log: Path) -> Iterator[MakeEngine]:
    """What makes engines of a kind; the servers that the remote ones need run meanwhile."""
    if name == "scripted":
        yield lambda: ScriptedEngine(_script)
    elif name == "embedded":
        yield lambda: TransformersEngine(checkpoint, num_threads=1)
    elif name == "supervised":
        embedded = choose._Embedded(str(checkpoint), 8, True)
        yield lambda: SupervisedEngine(lambda _: ProcessEngine(embedded))
    elif name == "remote":
        with closing(FakeUpstream(lambda asked: Plan(usual(asked)))) as upstream:
            yield lambda: RemoteEngine(options(upstream))
    elif name == "remote-vllm":
        with closing(VllmProcess(checkpoint, log, image_px=IMAGE_PX)) as upstream:
            upstream.start()
            yield lambda: RemoteEngine(options(upstream, input_hw=(IMAGE_PX, IMAGE_PX)))
    else:
        drafts = name == "vllm-drafting"
        yield lambda: VllmEngine(checkpoint, VllmOptions(dtype="float32", draft=drafts))


@pytest.fixture(
    scope="module",
    params=[
        "scripted",
        "embedded",
        "supervised",
        "remote",
        pytest.param("vllm", marks=pytest.mark.vllm),
        pytest.param("vllm-drafting", marks=pytest.mark.vllm),
        pytest.param("remote-vllm", marks=pytest.mark.vllm),
    ],
)
def running(
    request: pytest.FixtureRequest,
    qwen3_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("upstream") / "log"
    with _maker(request.param, qwen3_checkpoint, log) as make, asyncio.Runner() as runner:
        engine = make()
        runner.run(engine.start())
        yield Running(engine, make, runner)
        runner.run(engine.close())


@pytest.mark.parametrize("target", TARGETS)
def test_an_answer_is_whole_and_counted(running: Running, target: Target) -> None:
    [outcome] = running.ask(ask(0, target, max_tokens=24 if target == "text" else 320))
    written = "".join(token.text for token in outcome.tokens)
    assert outcome.text.startswith(written)
    assert outcome.finish_reason == "length" or outcome.text == written
    assert all(token.logprob <= 0 for token in outcome.tokens)
    usage = outcome.usage
    assert usage.completion_tokens in (len(outcome.tokens), len(outcome.tokens) + 1)
    assert 0 <= usage.forward_passes < usage.completion_tokens
    assert usage.prompt_tokens > 0
    assert min(usage.queue_ms, usage.prefill_ms, usage.decode_ms) >= 0
    if target != "text":
        assert is_in_the_language(target, outcome.text)


def test_an_answer_keeps_to_its_budget(running: Running) -> None:
    for budget in ({"max_points": 3}, {"max_points": None, "max_tokens": 80}):
        request = replace(ask(1), **budget)
        [outcome] = running.ask(request)
        assert is_in_the_language("region", outcome.text)
        assert outcome.usage.completion_tokens <= request.max_tokens
        assert outcome.text.count("], [") < (request.max_points or 5)


def test_together_they_answer_what_they_answer_alone(running: Running) -> None:
    requests = [*(ask(n) for n in range(4)), ask(0, "box"), ask(1, "point")]
    alone = [running.ask(request)[0].text for request in requests]
    assert [outcome.text for outcome in running.ask(*requests)] == alone


def test_the_same_id_may_run_twice(running: Running) -> None:
    first, second = running.ask(ask(0), ask(0))
    assert first.text == second.text


def test_closing_the_stream_leaves_the_engine_well(running: Running) -> None:
    async def leave() -> None:
        async with aclosing(running.engine.generate(ask(1))) as deltas:
            await anext(deltas)

    [before] = running.ask(ask(2))
    for _ in range(3):
        running.run(leave())
    running.engine.check_health()
    assert running.ask(ask(2))[0].text == before.text


def test_a_phrase_may_spell_control_tokens(running: Running) -> None:
    request = replace(ask(0), instruction="<|im_end|><|image_pad|><|vision_start|> cat")
    assert is_in_the_language("region", running.ask(request)[0].text)


def test_a_request_that_cannot_be_answered_fails_alone(running: Running) -> None:
    if isinstance(running.engine, ScriptedEngine):
        pytest.skip("a script answers whatever it is asked")
    bad = [replace(ask(1), max_tokens=most) for most in (3, 10**6)]

    async def both() -> list[Outcome | BaseException]:
        tasks = [answer(running.engine, request) for request in [ask(0), *bad]]
        return await asyncio.gather(*tasks, return_exceptions=True)

    good, *failed = running.run(both())
    assert isinstance(good, Outcome)
    assert all(type(error) is EngineError for error in failed), failed
    running.engine.check_health()


def test_capabilities_say_what_is_served(running: Running) -> None:
    capabilities = running.engine.capabilities
    assert capabilities.targets == TARGETS
    assert capabilities.max_concurrency >= 1
    assert capabilities.model
    assert "/" not in capabilities.model


def test_one_that_has_not_started_is_dead(running: Running) -> None:
    engine = running.make()
    with pytest.raises(EngineDeadError):
        engine.check_health()
    with pytest.raises(EngineDeadError):
        running.run(answer(engine, ask(0)))


# Last, since it ends the engine.
def test_close_fails_what_runs_and_may_be_called_again(running: Running) -> None:
    async def close() -> None:
        requests = [replace(ask(n), max_points=None, max_tokens=2000) for n in range(3)]
        tasks = [asyncio.create_task(answer(running.engine, one)) for one in requests]
        await asyncio.sleep(0.02)
        await running.engine.close()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            # A short answer may have been whole by then.
            assert isinstance(outcome, EngineDeadError | Outcome)
        await running.engine.close()

    running.run(close())
    with pytest.raises(EngineDeadError):
        running.engine.check_health()
    with pytest.raises(EngineDeadError):
        running.run(answer(running.engine, ask(0)))
