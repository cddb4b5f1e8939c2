"""Answers of a Qwen3-VL in training, many at once: a prompt is read once for all of its answers.

transformers' ``generate`` reads it once for each, and takes several times as long for a model of
the demo model's size, being mostly its own work between the matrix products. Here the prompt goes
through transformers' forward pass, and the answers through the parameters of its text layers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import pvariance
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from simpleseg_training.forward import rotate
from simpleseg_training.pairs import Truth
from simpleseg_training.processing import Start
from simpleseg_training.rewards import Score
from simpleseg_training.train_config import Rollouts

_WORTH_DROPPING = 0.8  # rows that have ended are dropped when no more than this share goes on


def can_sample(model: Any) -> bool:
    """Whether this module knows the model's layers: Qwen3-VL, its weights whole."""
    return getattr(model.config, "model_type", "") == "qwen3_vl" and not hasattr(
        model, "peft_config"
    )


class SharedPromptRollout:
    """TRL's ``rollout_func``: conversations, of which equal ones are neighbours -> token ids of
    prompts and answers. Raises ValueError for a model or settings that it does not know."""

    def __init__(self, rollouts: Rollouts, start: Start, model: Any, score: Score) -> None:
        if not can_sample(model):
            raise ValueError("rollouts.shared_prompt: is for Qwen3-VL without adapters alone")
        if rollouts.top_p < 1:
            raise ValueError("rollouts.shared_prompt: samples with top_p = 1 alone")
        self._rollouts = rollouts
        self._processor = start.processor
        self._score = score

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        groups = [list(group) for _, group in groupby(prompts, _what_is_asked)]
        model = trainer.accelerator.unwrap_model(trainer.model)
        inputs = self._processor.apply_chat_template(
            [group[0] for group in groups],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        ).to(model.device)
        truths = [group[0][0]["truth"] for group in groups]
        counts = [len(group) for group in groups]
        answers = [
            answer
            for kept in self._answers(model, inputs, counts, truths, trainer)
            for answer in kept
        ]
        rows = zip(inputs["input_ids"], inputs["attention_mask"].bool(), counts, strict=True)
        return {
            "prompt_ids": [ids[real].tolist() for ids, real, n in rows for _ in range(n)],
            "completion_ids": answers,
            "logprobs": None,  # what TRL would use them for, it does with its own vLLM alone
        }

    def _answers(
        self,
        model: Any,
        inputs: Any,
        counts: list[int],
        truths: list[Truth],
        trainer: Any,
    ) -> Iterator[list[list[int]]]:
        """Of each group the answers to learn from."""
        rollouts = self._rollouts
        sampled = [n * rollouts.oversample for n in counts]
        ids = sample(model, inputs, sampled, rollouts.max_tokens, rollouts.temperature)
        if rollouts.oversample == 1:
            yield ids
            return
        texts = self._processor.batch_decode(ids, skip_special_tokens=True)
        of_each = [t for t, n in zip(truths, sampled, strict=True) for _ in range(n)]
        scores = self._score(texts, of_each, ids)
        trainer._metrics["train"]["rollouts/reward"].append(sum(scores) / len(scores))
        for n, size in zip(counts, sampled, strict=True):
            group, ids = ids[:size], ids[size:]
            earned, scores = scores[:size], scores[size:]
            yield [group[i] for i in most_telling(earned, n)]


def most_telling(scores: Sequence[float], count: int) -> list[int]:
    """Which ``count`` of the scores vary most: some of the best and some of the worst.

    >>> most_telling([0.5, 0.9, 0.1, 0.6], 2)
    [2, 1]
    """
    order = sorted(range(len(scores)), key=scores.__getitem__)
    choices = [order[:low] + order[len(order) - count + low :] for low in range(count + 1)]
    return max(choices, key=lambda choice: pvariance([scores[i] for i in choice]))


def _what_is_asked(prompt: list[dict[str, Any]]) -> list[Any]:
    return [
        part["image"].tobytes() if part["type"] == "image" else part["text"]
        for message in prompt
        for part in message["content"]
    ]


@dataclass
class _Rows:
    """Answers that still go on; the keys and values of a layer are (rows, heads, length, width)."""

    numbers: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    attended: Tensor
    positions: Tensor
    tokens: Tensor
    going_on: Tensor

    def drop_ended(self) -> None:
        which = self.going_on.nonzero()[:, 0]
        for name, value in vars(self).items():
            rows = [one[which] for one in value] if isinstance(value, list) else value[which]
            setattr(self, name, rows)


@torch.no_grad()
def sample(
    model: Any,
    inputs: Mapping[str, Tensor],
    counts: Sequence[int],
    max_tokens: int,
    temperature: float | None,
) -> list[list[int]]:
    """``counts[i]`` answers to the i-th prompt of ``inputs`` (a processor's, padded on the left),
    one after the other: token ids with the end of the turn, of which there are up to
    ``max_tokens``. Without a temperature the likeliest token is taken."""
    length = inputs["input_ids"].shape[1]
    rows, logits = _read_prompts(model, inputs, torch.tensor(counts), max_tokens)
    written = torch.full((len(rows.numbers), max_tokens), -1, device=logits.device)
    end = model.generation_config.eos_token_id
    ends = torch.tensor(end if isinstance(end, list) else [end], device=logits.device)
    for i in range(max_tokens):
        rows.tokens = _choose(logits, temperature, model.config.image_token_id)
        written[rows.numbers, i] = rows.tokens
        rows.going_on &= ~torch.isin(rows.tokens, ends)
        left = int(rows.going_on.sum())
        if not left or i + 1 == max_tokens:
            break
        if left <= _WORTH_DROPPING * len(rows.tokens):
            rows.drop_ended()
        logits = _step(model, rows, length + i)
    return [_until(row.tolist(), ends.tolist()) for row in written]


def _until(ids: list[int], ends: list[int]) -> list[int]:
    """The tokens up to the first that ends an answer, and with it."""
    return ids[: next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))]


def _read_prompts(
    model: Any, inputs: Mapping[str, Tensor], counts: Tensor, max_tokens: int
) -> tuple[_Rows, Tensor]:
    """A row for each answer, and the logits of its first token."""
    output = model(**inputs, use_cache=True, logits_to_keep=1)
    attended = inputs["attention_mask"].bool()
    positions = model.model.rope_deltas.view(-1) + attended.sum(dim=1)
    which = torch.arange(len(counts)).repeat_interleave(counts).to(attended.device)
    # transformers renamed it in 5.20.
    layers = output["cache" if "cache" in output else "past_key_values"].layers

    def roomy(tensor: Tensor) -> Tensor:
        return F.pad(tensor, (0, 0, 0, max_tokens))[which]

    rows = _Rows(
        torch.arange(len(which), device=attended.device),
        [roomy(layer.keys) for layer in layers],
        [roomy(layer.values) for layer in layers],
        F.pad(attended, (0, max_tokens), value=True)[which],
        positions[which],
        which,
        torch.ones_like(which, dtype=torch.bool),
    )
    return rows, output.logits[:, -1][which]


def _choose(logits: Tensor, temperature: float | None, image_token: int) -> Tensor:
    """A token for each row; never a place for an image, which TRL's own sampling keeps out too."""
    logits = logits.float()
    logits[:, image_token] = -torch.inf
    if temperature is None:
        return logits.argmax(dim=-1)
    return torch.multinomial((logits / temperature).softmax(dim=-1), 1)[:, 0]


def _step(model: Any, rows: _Rows, at: int) -> Tensor:
    """Logits after one more token of every row, which stands at ``at`` in the cache."""
    text = model.model.language_model
    hidden = text.embed_tokens(rows.tokens)
    cos, sin = text.rotary_emb(hidden, rows.positions.view(1, -1, 1).expand(3, -1, 1))
    mask = rows.attended[:, None, None, : at + 1]
    for layer, keys, values in zip(text.layers, rows.keys, rows.values, strict=True):
        normed = layer.input_layernorm(hidden)
        hidden = hidden + _attend(layer.self_attn, normed, keys, values, cos, sin, mask)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    rows.positions = rows.positions + 1
    logits: Tensor = model.lm_head(text.norm(hidden))
    return logits


def _attend(
    attention: Any,
    normed: Tensor,
    keys: Tensor,
    values: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor,
) -> Tensor:
    """Attention of one token of every row; its key and value are put where the mask ends."""
    at, width = mask.shape[-1] - 1, attention.head_dim
    heads = (len(normed), -1, width)
    query = attention.q_norm(attention.q_proj(normed).view(heads))
    key = attention.k_norm(attention.k_proj(normed).view(heads))
    keys[:, :, at] = rotate(key, cos, sin)
    values[:, :, at] = attention.v_proj(normed).view(heads)
    # Query heads that share a key are, to attention, so many places that ask.
    query = rotate(query, cos, sin).view(len(normed), keys.shape[1], -1, width)
    mixed = F.scaled_dot_product_attention(
        query, keys[:, :, : at + 1], values[:, :, : at + 1], attn_mask=mask
    )
    projected: Tensor = attention.o_proj(mixed.flatten(1))
    return projected
