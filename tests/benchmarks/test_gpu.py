"""The parts of the GPU benchmarks that need neither a GPU nor vLLM."""

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from simpleseg_training.tokenizer import qwen_tokenizer_file

FOLDER = Path(__file__).parents[2] / "benchmarks/gpu"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shapes() -> dict[str, torch.Size]:
    make_checkpoint = _load("make_checkpoint")
    tokenizer = Tokenizer.from_file(str(qwen_tokenizer_file()))
    found: dict[str, torch.Size] = make_checkpoint.shapes_of(
        make_checkpoint.config_for("7b", tokenizer)
    )
    return found


def test_the_checkpoint_is_qwen_s_size(shapes: dict[str, torch.Size]) -> None:
    """The published checkpoint has 729 tensors and 8,292,166,656 weights."""
    assert len(shapes) == 729
    assert sum(shape.numel() for shape in shapes.values()) == 8_292_166_656


def test_a_step_reads_the_layers_and_the_output_matrix(shapes: dict[str, torch.Size]) -> None:
    make_checkpoint = _load("make_checkpoint")
    hidden, ffn, kv = 3584, 18944, 512
    matrices = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * ffn
    small = hidden + 2 * kv + 2 * hidden  # biases of query, key and value; two norms
    expected = 2 * (28 * (matrices + small) + hidden + 152_064 * hidden)
    assert make_checkpoint.step_bytes(shapes) == expected


class _Runner:
    """What the forcer sees of a model runner, with a sampler that takes the largest logit."""

    def __init__(self, ids: list[str], prompts: list[int], written: list[int]) -> None:
        self.input_batch = SimpleNamespace(
            req_ids=ids,
            num_prompt_tokens=prompts,
            num_tokens_no_spec=[p + w for p, w in zip(prompts, written, strict=True)],
        )

    def _sample(self, logits: Tensor, drafts: Any) -> list[int]:
        return list(logits.argmax(dim=-1).tolist())


def test_rows_get_the_tokens_that_follow() -> None:
    worker = _load("replay_worker")
    runner = _Runner(["0#a", "warm-up", "1#b"], [5, 5, 7], [2, 0, 0])
    forcer = worker.Forcer(runner, {"0": [10, 11, 12, 13], "1": [20, 21]})
    drafts = SimpleNamespace(num_draft_tokens=[3, 0, 1])
    sampled = forcer(torch.zeros(4 + 1 + 2, 30), drafts)
    # Past its end an answer repeats the end token; nobody takes it.
    assert sampled == [12, 13, 13, 13, 0, 20, 21]
    assert forcer(torch.zeros(3, 30), None) == [12, 0, 20]
    assert forcer.steps == 2
    assert {name: len(c.places) for name, c in forcer.counts.items()} == {"0#a": 1, "1#b": 1}
    assert forcer.counts["0#a"].drafted == 3


def test_what_the_grammar_forbids_stays_forbidden() -> None:
    worker = _load("replay_worker")
    forcer = worker.Forcer(_Runner(["0#a"], [5], [0]), {"0": [4]})
    logits = torch.zeros(1, 8)
    logits[0, 4] = -torch.inf
    assert forcer(logits, None) != [4]
