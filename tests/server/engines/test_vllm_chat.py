"""What the chat asks of the real vLLM beyond the plain route: conversations, clients' grammars."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from simpleseg_server.engines.base import (
    ClientGrammar,
    GenerationRequest,
    PromptRefusedError,
    Turn,
)
from simpleseg_server.engines.vllm import VllmEngine
from simpleseg_server.engines.vllm_backend import VllmOptions

from .support import Outcome, answer, ask

pytestmark = pytest.mark.vllm
FREE = replace(ask(0), target="text", constrained=False, max_tokens=40)


@dataclass(frozen=True)
class Bench:
    engine: VllmEngine
    runner: asyncio.Runner

    def ask(self, request: GenerationRequest) -> Outcome:
        return self.runner.run(asyncio.wait_for(answer(self.engine, request), 120))


@pytest.fixture(scope="module")
def bench(qwen3_checkpoint: Path) -> Iterator[Bench]:
    engine = VllmEngine(qwen3_checkpoint, VllmOptions(dtype="float32", draft=False))
    with asyncio.Runner() as runner:
        runner.run(engine.start())
        yield Bench(engine, runner)
        runner.run(engine.close())


@pytest.mark.parametrize(
    ("kind", "value", "texts"),
    [
        ("regex", "(yes|no)", {"yes", "no"}),
        ("choice", ["cat", "dog"], {"cat", "dog"}),
        ("grammar", 'root ::= "a" | "b"', {"a", "b"}),
    ],
)
def test_a_clients_grammar_is_kept(bench: Bench, kind: Any, value: Any, texts: set[str]) -> None:
    assert bench.engine.capabilities.client_grammars
    outcome = bench.ask(replace(FREE, client_grammar=ClientGrammar(kind, value)))
    assert outcome.text in texts
    assert outcome.finish_reason == "stop"


def test_a_clients_schema_is_kept(bench: Bench) -> None:
    schema = {
        "type": "object",
        "properties": {"found": {"type": "boolean"}},
        "required": ["found"],
        "additionalProperties": False,
    }
    outcome = bench.ask(replace(FREE, client_grammar=ClientGrammar("json", schema)))
    if outcome.finish_reason == "stop":  # a model with random weights may write spaces for ever
        assert json.loads(outcome.text)["found"] in (True, False)
    assert outcome.text.startswith("{")


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("grammar", "root ::= ("),
        ("grammar", "no grammar at all"),
        ("regex", "("),
        ("json", {"type": "nothing"}),
    ],
)
def test_a_grammar_that_is_none_is_the_clients_fault(bench: Bench, kind: Any, value: Any) -> None:
    [before] = [bench.ask(ask(0))]
    with pytest.raises(PromptRefusedError) as caught:
        bench.ask(replace(FREE, client_grammar=ClientGrammar(kind, value)))
    assert caught.value.code == "grammar_rejected"
    bench.engine.check_health()
    assert bench.ask(ask(0)).text == before.text


@pytest.mark.parametrize("words", [2_700, 100_000])  # without the answer it would fit, or not
def test_a_conversation_that_is_too_long(bench: Bench, words: int) -> None:
    history = (Turn("system", "a b c " * words),)
    with pytest.raises(PromptRefusedError) as caught:
        bench.ask(replace(ask(0), history=history))
    assert caught.value.code == "context_length_exceeded"
    bench.engine.check_health()


def test_the_same_question_is_cached(bench: Bench) -> None:
    history = (Turn("system", "A long and winding system prompt. " * 20),)
    first, second = (bench.ask(replace(FREE, history=history)).usage for _ in range(2))
    assert second.prompt_tokens == first.prompt_tokens
    assert first.cached_tokens is not None
    assert second.cached_tokens is not None
    assert first.cached_tokens < second.cached_tokens < second.prompt_tokens


def test_what_was_said_before_is_read(bench: Bench) -> None:
    alone = bench.ask(FREE)
    said = (Turn("user", "A dog?", has_image=True), Turn("assistant", "No."))
    told = bench.ask(replace(FREE, history=said))
    assert told.usage.prompt_tokens > alone.usage.prompt_tokens
    assert told.text != alone.text
