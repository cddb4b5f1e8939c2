"""A batched forward pass over the parameters of transformers' Qwen3-VL, for packed training.

transformers' own vision tower loops over images; here images of one size run as one batch. The
result equals the single-turn forward of transformers to rounding (tests/training).
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration

from simpleseg_training.model import MERGE, PATCH
from simpleseg_training.packing import Batch


def patchify(images: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> normalised patches (B, patches, 3 * PATCH * PATCH), in merge order:
    the MERGE x MERGE patches of one visual token are neighbours."""
    batch, height, width, _ = images.shape
    rows, cols = height // (PATCH * MERGE), width // (PATCH * MERGE)
    x = images.float().div(127.5).sub(1)
    x = x.view(batch, rows, MERGE, PATCH, cols, MERGE, PATCH, 3).permute(0, 1, 4, 2, 5, 7, 3, 6)
    return x.reshape(batch, rows * cols * MERGE * MERGE, 3 * PATCH * PATCH)


def merge_order(grid: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Row-major patch index of each patch in merge order."""
    side = grid // MERGE
    index = np.arange(grid * grid).reshape(side, MERGE, side, MERGE)
    return index.transpose(0, 2, 1, 3).reshape(-1)


def encode_images(
    model: Qwen3VLForConditionalGeneration, images: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Visual tokens (B, tokens, width) and the deepstack features for the first text layers."""
    tower = model.model.visual
    grid = images.shape[1] // PATCH
    order = torch.as_tensor(merge_order(grid), device=images.device)
    kernel = tower.patch_embed.proj.weight.sum(2).flatten(1)  # a still image: both frames alike
    hidden = F.linear(patchify(images), kernel, tower.patch_embed.proj.bias)
    hidden = hidden + tower.pos_embed.weight[order]
    cos, sin = tower.rotary_pos_emb(hidden, torch.stack([order // grid, order % grid], dim=1))
    levels = []
    for i, block in enumerate(tower.blocks):
        hidden = hidden + _vision_attention(block.attn, block.norm1(hidden), cos, sin)
        hidden = hidden + block.mlp(block.norm2(hidden))
        if i in tower.deepstack_visual_indexes:
            merger = tower.deepstack_merger_list[tower.deepstack_visual_indexes.index(i)]
            levels.append(merger(hidden))
    return tower.merger(hidden).view(len(images), -1, model.config.text_config.hidden_size), levels


def _vision_attention(attention: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    batch, length, _ = x.shape
    heads = attention.num_heads
    qkv = attention.qkv(x).view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = qkv.unbind(0)
    query, key = rotate(query, cos, sin), rotate(key, cos, sin)
    mixed = F.scaled_dot_product_attention(query, key.to(value.dtype), value)
    projected: Tensor = attention.proj(mixed.transpose(1, 2).reshape(batch, length, -1))
    return projected


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of queries or keys."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return (x * cos + turned * sin).to(x.dtype)


def attention_mask(segments: Tensor) -> Tensor:
    """(B, 1, L, L) bool: causal, within the own branch and the shared image."""
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    same = segments[:, :, None] == segments[:, None, :]
    shared = segments[:, None, :] == 0
    return ((same | shared) & causal)[:, None]


def hidden_states(
    model: Qwen3VLForConditionalGeneration, batch: Batch, image_start: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Last hidden states (B, L, width), those at half the depth, and the visual tokens (B, tokens,
    width).

    The visual tokens stand at ``image_start`` in every sequence, so that slices do the work of
    transformers' boolean indexing and the whole function compiles into one graph.
    """
    visual, levels = encode_images(model, batch.images)
    text = model.model.language_model
    hidden = text.embed_tokens(batch.ids)
    image_end = image_start + visual.shape[1]
    hidden = torch.cat(
        [hidden[:, :image_start], visual.to(hidden.dtype), hidden[:, image_end:]], dim=1
    )
    rotary = text.rotary_emb(hidden, batch.positions)
    mask = attention_mask(batch.segments)
    middle = hidden
    for i, layer in enumerate(text.layers):
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
        if i < len(levels):
            level = levels[i].view(visual.shape).to(hidden.dtype)
            hidden = hidden + F.pad(level, (0, 0, image_start, hidden.shape[1] - image_end))
        if i + 1 == len(text.layers) // 2:
            middle = hidden
    return text.norm(hidden), middle, visual
