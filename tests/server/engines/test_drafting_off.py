"""The real vLLM without drafts: where it takes no proposer of ours, and where it is told so."""

import asyncio
import importlib.util
import logging
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from simpleseg_server.engines.base import Engine
from simpleseg_server.engines.choose import make_engine
from simpleseg_server.engines.vllm_backend import Launch, VllmOptions

from .support import Outcome, answer, ask

pytestmark = pytest.mark.vllm

PROPOSER_MODULE = "vllm.v1.spec_decode.custom_class_proposer"


@pytest.fixture
def without_proposers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vLLM from before it took custom proposers: it lacks the module."""
    from simpleseg_server.engines import vllm_compat

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == PROPOSER_MODULE else importlib.util.find_spec(name, package)

    monkeypatch.setattr(vllm_compat, "find_spec", find_spec)


def speculation(draft: bool, checkpoint: Path) -> Any:
    from simpleseg_server.engines.vllm_compat import engine_args

    options = VllmOptions(draft=draft)
    launch = Launch(str(checkpoint), options, max_model_len=2048, image_hw=None)
    return engine_args(launch).speculative_config


def one_answer(engine: Engine) -> Outcome:
    async def run() -> Outcome:
        await engine.start()
        try:
            return await answer(engine, ask(0, max_tokens=200))
        finally:
            await engine.close()

    return asyncio.run(run())


def assert_not_drafted(outcome: Outcome) -> None:
    assert outcome.usage.forward_passes == outcome.usage.completion_tokens - 1
    assert outcome.usage.drafts == ()


def test_a_vllm_without_proposers_starts_without_drafts_and_says_so(
    qwen3_checkpoint: Path, without_proposers: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "simpleseg"):
        engine = make_engine(
            "vllm", str(qwen3_checkpoint), vllm_options={"dtype": "float32"}, draft=True
        )
        assert_not_drafted(one_answer(engine))
    assert "drafting is off: this vLLM takes no custom proposer" in caplog.text


def test_without_proposers_nothing_is_asked_of_speculation(
    qwen3_checkpoint: Path, without_proposers: None
) -> None:
    assert speculation(True, qwen3_checkpoint) is None


def test_the_switch_turns_drafting_off(qwen3_checkpoint: Path) -> None:
    assert speculation(True, qwen3_checkpoint)["method"] == "custom_class"
    assert speculation(False, qwen3_checkpoint) is None
    engine = make_engine(
        "vllm", str(qwen3_checkpoint), vllm_options={"dtype": "float32"}, draft=False
    )
    assert_not_drafted(one_answer(engine))
