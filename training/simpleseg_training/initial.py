"""Initial weights that give a model from scratch a sense of where and of how much."""

import math

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration

from simpleseg_training.tokenizer import token_id

_FREQUENCIES = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)


@torch.no_grad()
def initialise(model: Qwen3VLForConditionalGeneration, tokenizer: Tokenizer) -> None:
    """Digit embeddings that vary smoothly with the digit; 2-D sines in the vision tower's position
    table."""
    embedding = model.model.language_model.embed_tokens.weight
    digits = [token_id(tokenizer, str(d)) for d in range(10)]
    embedding[digits] = _digit_embeddings(embedding.shape[1])
    table = model.model.visual.pos_embed.weight
    table.copy_(_position_table(math.isqrt(table.shape[0]), table.shape[1]))


def _digit_embeddings(width: int) -> Tensor:
    """Neighbouring digits start similar: shape (10, width), deviation 0.02 as the other tokens."""
    generator = torch.Generator().manual_seed(1)
    angles = 2 * math.pi * torch.tensor(_FREQUENCIES) * torch.arange(10)[:, None] / 10
    features = torch.cat([angles.sin(), angles.cos(), torch.ones(10, 1)], dim=1)
    mixed = features @ torch.randn(features.shape[1], width, generator=generator)
    return 0.02 * mixed / mixed.std()


def _position_table(side: int, width: int) -> Tensor:
    """Sines and cosines of the column and the row, shape (side * side, width)."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    rates = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    across, down = columns.reshape(-1, 1) * rates, rows.reshape(-1, 1) * rates
    return 0.3 * torch.cat([across.sin(), across.cos(), down.sin(), down.cos()], dim=1)
