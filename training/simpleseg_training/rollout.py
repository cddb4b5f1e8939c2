"""Batched greedy answers of a model in training, by transformers' own ``generate``."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from transformers import Qwen3VLForConditionalGeneration

from simpleseg_polygon import prompts
from simpleseg_polygon.prompts import Target
from simpleseg_training.cases import load_cases
from simpleseg_training.evaluate import Reply, judge, metrics_of
from simpleseg_training.forward import patchify
from simpleseg_training.model import PATCH, ModelSize
from simpleseg_training.packing import Packer
from simpleseg_training.sampling import can_sample, sample
from simpleseg_training.tokenizer import END_OF_TEXT, END_OF_TURN, token_id

_BATCH = 50
_WATCHED = ("giou", "acc50", "box_acc50", "false_empty", "tokens_per_answer")


@torch.no_grad()
def greedy_answers(
    model: Qwen3VLForConditionalGeneration,
    tokenizer: Tokenizer,
    size: ModelSize,
    images: Sequence[NDArray[np.uint8]],
    instructions: Sequence[str],
    max_tokens: int,
) -> list[str]:
    """The unconstrained answer text to each instruction about its image."""
    packer = Packer(tokenizer, size)
    end, pad = token_id(tokenizer, END_OF_TURN), token_id(tokenizer, END_OF_TEXT)
    answers: list[str] = []
    for i in range(0, len(images), _BATCH):
        rows = [packer.prompt(text) for text in instructions[i : i + _BATCH]]
        longest = max(map(len, rows))
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
        attended = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        patches = patchify(torch.from_numpy(np.stack(images[i : i + _BATCH])))
        frames = patches.view(-1, 3, 1, PATCH, PATCH).expand(-1, -1, 2, -1, -1).flatten(1)
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=attended.to(model.device),
            pixel_values=frames.to(model.device),
            image_grid_thw=torch.tensor([[1, size.grid, size.grid]] * len(rows)).to(model.device),
            mm_token_type_ids=(ids == model.config.image_token_id).long().to(model.device),
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=pad,
        )
        answers += tokenizer.decode_batch(output[:, longest:].tolist())
    return answers


@torch.no_grad()
def chat_answers(
    model: Any,
    processor: Any,
    images: Sequence[Image.Image],
    instructions: Sequence[str],
    max_tokens: int,
    batch: int,
) -> list[str]:
    """The unconstrained answer text of any model that has a processor with a chat template."""
    answers: list[str] = []
    for i in range(0, len(images), batch):
        chats = [
            conversation(image, text)
            for image, text in zip(images[i : i + batch], instructions[i : i + batch], strict=True)
        ]
        inputs = processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        ).to(model.device)
        written = _greedy(model, inputs, max_tokens)
        answers += processor.batch_decode(written, skip_special_tokens=True)
    return answers


def _greedy(model: Any, inputs: Any, max_tokens: int) -> list[list[int]]:
    if can_sample(model):
        return sample(model, inputs, [1] * len(inputs["input_ids"]), max_tokens, None)
    output = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
    written: list[list[int]] = output[:, inputs["input_ids"].shape[1] :].tolist()
    return written


def conversation(image: Image.Image, instruction: str) -> list[dict[str, Any]]:
    """One turn of a user in the form of chat templates, the image before its question."""
    parts = [{"type": "image", "image": image}, {"type": "text", "text": instruction}]
    return [{"role": "user", "content": parts}]


def quick_evaluation(
    model: Qwen3VLForConditionalGeneration,
    tokenizer: Tokenizer,
    size: ModelSize,
    data: str,
    limit: int,
) -> dict[str, float]:
    """Metrics of the model on the first validation cases, to watch a run."""
    cases = load_cases(data, "val", limit, size.image_px)
    images = [case.image_hw3 for case in cases]
    budgets: dict[Target, int] = {"region": 300, "box": 32}
    texts = {
        target: greedy_answers(
            model,
            tokenizer,
            size,
            images,
            [prompts.instruction(target, case.phrase) for case in cases],
            max_tokens,
        )
        for target, max_tokens in budgets.items()
    }
    replies = {
        target: [Reply(text, len(tokenizer.encode(text).ids), 0, 0.0) for text in answers]
        for target, answers in texts.items()
    }
    judged = [
        judge(case, region, box)
        for case, region, box in zip(cases, replies["region"], replies["box"], strict=True)
    ]
    metrics = metrics_of(judged)
    return {name: round(metrics[name], 4) for name in _WATCHED}
