"""Answers sampled with a shared prompt are those of transformers' own loop."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from statistics import pvariance
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer

from simpleseg_training.model import ModelSize
from simpleseg_training.processing import Start, load_start
from simpleseg_training.rollout import conversation
from simpleseg_training.sampling import SharedPromptRollout, most_telling, sample
from simpleseg_training.scenes import render_scene
from simpleseg_training.train_config import ModelConfig, Rollouts

from . import checkpoints

PHRASES = ("the red star", "the second striped object from the left", "the blue letter")


@pytest.fixture
def start(tmp_path: Path, tokenizer: Tokenizer, tiny: ModelSize) -> Start:
    made = load_start(ModelConfig(path=str(checkpoints.demo(tmp_path, tokenizer, tiny))))
    torch.manual_seed(3)
    for parameter in made.model.parameters():  # so that answers end, and differ
        parameter.data += 0.3 * torch.randn_like(parameter)
    return made


def _score(texts: Sequence[str], truths: Any, ids: Sequence[Sequence[int]]) -> list[float]:
    """The longer the better, up to what there may be."""
    return [float(len(one)) for one in ids]


def _chats() -> list[list[dict[str, Any]]]:
    images = [Image.fromarray(render_scene(i, 1, 3, 64).image_hw3) for i in range(len(PHRASES))]
    return [conversation(image, text) for image, text in zip(images, PHRASES, strict=True)]


def _inputs(start: Start, which: tuple[int, ...] = (0, 1, 2)) -> Any:
    chats = _chats()
    return start.processor.apply_chat_template(
        [chats[i] for i in which],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )


def _until_its_end(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids


def test_the_likeliest_tokens_are_those_of_transformers(start: Start) -> None:
    inputs, model = _inputs(start), start.model
    assert not inputs["attention_mask"].all()  # prompts of different lengths
    image_token = model.config.image_token_id
    wanted = model.generate(
        **inputs, max_new_tokens=40, do_sample=False, suppress_tokens=[image_token]
    )[:, inputs["input_ids"].shape[1] :].tolist()
    end = model.generation_config.eos_token_id
    wanted = [_until_its_end(ids, end) for ids in wanted]
    answers = sample(model, inputs, [1, 2, 1], 40, None)
    assert answers == [wanted[0], wanted[1], wanted[1], wanted[2]]


def test_tokens_are_drawn_as_the_model_says(start: Start) -> None:
    inputs, model = _inputs(start), start.model
    torch.manual_seed(0)
    answers = sample(model, inputs, [2000, 0, 0], 1, 0.7)
    logits = model(**inputs).logits[0, -1]
    logits[model.config.image_token_id] = -torch.inf
    wanted = (logits / 0.7).softmax(dim=-1)
    found = torch.bincount(torch.tensor(answers)[:, 0], minlength=len(wanted)) / len(answers)
    assert (found - wanted).abs().sum() / 2 < 0.5 * (wanted > 0.5 / 2000).sum() ** 0.5 / 2000**0.5


class Trainer:
    """What a rollout wants of TRL's."""

    def __init__(self, model: Any) -> None:
        self.accelerator, self.model = self, model
        self._metrics: dict[str, Any] = {"train": defaultdict(list)}

    def unwrap_model(self, model: Any) -> Any:
        return model


def _prompts(*numbers: int) -> list[list[dict[str, Any]]]:
    chats = _chats()
    return [[chats[i][0] | {"truth": None}] for i in numbers]


def test_a_rollout_puts_answers_beside_their_prompts(start: Start) -> None:
    rollout = SharedPromptRollout(Rollouts(max_tokens=5), start, start.model, _score)
    made = rollout(_prompts(0, 0, 1), Trainer(start.model))
    assert len(made["completion_ids"]) == len(made["prompt_ids"]) == 3
    assert made["prompt_ids"][0] == made["prompt_ids"][1] != made["prompt_ids"][2]
    pad = start.processor.tokenizer.pad_token_id
    assert all(pad not in ids for ids in made["prompt_ids"])
    assert all(1 <= len(ids) <= 5 for ids in made["completion_ids"])


def test_of_many_answers_those_are_kept_that_differ_most(start: Start) -> None:
    rollouts = Rollouts(max_tokens=60, oversample=16)
    trainer = Trainer(start.model)
    torch.manual_seed(0)
    made = SharedPromptRollout(rollouts, start, start.model, _score)(_prompts(0, 0, 2), trainer)
    torch.manual_seed(0)
    every = sample(start.model, _inputs(start, (0, 2)), [32, 16], 60, rollouts.temperature)
    lengths = [len(ids) for ids in every]
    kept = [len(ids) for ids in made["completion_ids"]]
    assert sorted(kept[:2]) == [min(lengths[:32]), max(lengths[:32])]
    assert kept[2] in lengths[32:]
    assert trainer._metrics["train"]["rollouts/reward"] == [pytest.approx(sum(lengths) / 48)]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.data())
def test_no_choice_varies_more(scores: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(scores)))
    kept = most_telling(scores, count)
    assert len(set(kept)) == count
    most = max(pvariance(choice) for choice in combinations(scores, count))
    assert pvariance([scores[i] for i in kept]) == pytest.approx(most)


def test_models_and_settings_that_it_does_not_know_are_refused(start: Start) -> None:
    with pytest.raises(ValueError, match="top_p"):
        SharedPromptRollout(Rollouts(top_p=0.9), start, start.model, _score)
    start.model.config.model_type = "qwen2_5_vl"
    with pytest.raises(ValueError, match="Qwen3-VL"):
        SharedPromptRollout(Rollouts(), start, start.model, _score)
