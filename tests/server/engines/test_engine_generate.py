"""The embedded engine against transformers' own generate, whose inputs are put together here
without the engine's code."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from outlines.backends.outlines_core import OutlinesCoreLogitsProcessor
from outlines_core import Index, Vocabulary
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from simpleseg_polygon.automaton import ALPHABET
from simpleseg_polygon.grammar import Budget, TokenTable, regex, token_bytes
from simpleseg_polygon.prompts import Target
from simpleseg_server.engines.base import GenerationRequest

from .support import StartEngine, answers, ask


class TableMask:
    def __init__(self, table: TokenTable, budget: Budget, prompt_length: int) -> None:
        self._walk = table.walk(budget)
        self._seen = prompt_length

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        for token in input_ids[0, self._seen :].tolist():
            self._walk.advance(token)
        self._seen = input_ids.shape[1]
        masked = torch.full_like(scores, -torch.inf)
        allowed = torch.from_numpy(self._walk.allowed().astype(np.int64))
        masked[:, allowed] = scores[:, allowed]
        return masked


class Reference:
    """model.generate on one checkpoint."""

    def __init__(self, path: Path) -> None:
        self.model: Any = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
        self.images = Qwen2VLImageProcessorPil.from_pretrained(path)
        self.is_stretched = (path / "simpleseg.json").exists()

    def inputs(self, request: GenerationRequest) -> dict[str, Any]:
        image = Image.fromarray(request.image_hw3)
        if self.is_stretched:
            image = image.resize((64, 64), Image.Resampling.BICUBIC)
        pixels = self.images.preprocess([image], return_tensors="pt")
        content = [{"type": "image"}, {"type": "text", "text": request.instruction}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        visual_tokens = int(pixels["image_grid_thw"].prod()) // 4
        text = text.replace("<|image_pad|>", "<|image_pad|>" * visual_tokens)
        ids = self.tokenizer(text, return_tensors="pt")["input_ids"]
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == self.model.config.image_token_id).long(),
            "pixel_values": pixels["pixel_values"],
            "image_grid_thw": pixels["image_grid_thw"],
        }

    def table_answer(self, request: GenerationRequest) -> list[int]:
        vocabulary = token_bytes(self.tokenizer.get_vocab())
        table = TokenTable(request.target, vocabulary, self.tokenizer.eos_token_id)
        budget = Budget(request.max_tokens, max_points=request.max_points)
        inputs = self.inputs(request)
        return self.answer(request, TableMask(table, budget, inputs["input_ids"].shape[1]))

    def outlines_answer(self, request: GenerationRequest) -> list[int]:
        end = self.tokenizer.eos_token_id
        spelled: dict[bytes, list[int]] = {}
        for token, text in token_bytes(self.tokenizer.get_vocab()).items():
            if not text.translate(None, ALPHABET):
                spelled.setdefault(text, []).append(token)
        budget = Budget(request.max_tokens, max_points=request.max_points)
        index = Index(regex(request.target, budget), Vocabulary(end, spelled))
        with torch.compiler.set_stance("force_eager"):  # its mask kernel compiles for seconds
            return self.answer(request, OutlinesCoreLogitsProcessor(index, "torch"))

    def answer(self, request: GenerationRequest, *masks: Any) -> list[int]:
        inputs = self.inputs(request)
        output = self.model.generate(
            **inputs,
            max_new_tokens=request.max_tokens,
            do_sample=False,
            logits_processor=list(masks),
        )
        ids: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
        return ids

    def text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text


@pytest.mark.parametrize("target", ["region", "box", "point"])
def test_answers_what_generate_answers_under_the_token_table(
    checkpoint: Path, start_engine: StartEngine, target: Target
) -> None:
    reference = Reference(checkpoint)
    requests = [ask(number, target) for number in range(2)]
    for request, got in zip(requests, answers(start_engine(checkpoint), requests), strict=True):
        expected = reference.table_answer(request)
        assert got.text == reference.text(expected)
        assert got.usage.completion_tokens == len(expected)
        assert got.usage.prompt_tokens == reference.inputs(request)["input_ids"].shape[1]


@pytest.mark.parametrize("target", ["region", "box", "point"])
def test_answers_what_generate_answers_under_outlines_guide(
    checkpoint: Path, start_engine: StartEngine, target: Target
) -> None:
    reference = Reference(checkpoint)
    requests = [ask(number, target) for number in range(1)]
    for request, got in zip(
        requests, answers(start_engine(checkpoint, grammar="outlines"), requests), strict=True
    ):
        assert got.text == reference.text(reference.outlines_answer(request))


@pytest.mark.parametrize("target", ["text", "region"])
def test_answers_what_generate_answers_without_a_grammar(
    checkpoint: Path, start_engine: StartEngine, target: Target
) -> None:
    """The text is so long that the cache grows on the way."""
    reference = Reference(checkpoint)
    tokens = 240 if target == "text" else 60
    request = ask(1, target, max_tokens=tokens, constrained=False)
    [got] = answers(start_engine(checkpoint), [request])
    expected = reference.answer(request)
    assert got.text == reference.text(expected)
    assert got.usage.completion_tokens == len(expected)
    assert got.finish_reason == ("length" if len(expected) == tokens else "stop")


def test_first_log_probability_is_that_of_the_allowed_tokens(
    qwen3_checkpoint: Path, start_engine: StartEngine
) -> None:
    reference = Reference(qwen3_checkpoint)
    request = ask(0)
    [got] = answers(start_engine(qwen3_checkpoint), [request])
    with torch.inference_mode():
        logits = reference.model(**reference.inputs(request)).logits[0, -1]
    vocabulary = token_bytes(reference.tokenizer.get_vocab())
    walk = TokenTable("region", vocabulary, reference.tokenizer.eos_token_id).walk(Budget(320))
    allowed = walk.allowed().tolist()
    best = logits[allowed].log_softmax(-1).max()
    assert got.tokens[0].logprob == pytest.approx(float(best), abs=1e-5)
