"""The demo model: Qwen3-VL scaled down, so that transformers and vLLM load it unmodified.

Qwen3-VL rather than Qwen2.5-VL because its vision tower has a learned absolute position table,
which a model trained from scratch needs to find where things are.
"""

from dataclasses import dataclass

from tokenizers import Tokenizer
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from simpleseg_training.tokenizer import END_OF_TEXT, END_OF_TURN, IMAGE_PAD, token_id

PATCH = 16
MERGE = 2
CELL = PATCH * MERGE
"""Pixels on one side of the image area behind one visual token."""


@dataclass(frozen=True)
class ModelSize:
    """Widths and depths; ``image_px`` is the side of the square input image."""

    image_px: int = 128
    vision_width: int = 128
    vision_depth: int = 3
    vision_heads: int = 4
    vision_ffn: int = 256
    width: int = 192
    depth: int = 4
    heads: int = 3
    kv_heads: int = 1
    ffn: int = 512
    head_dim: int = 64
    deepstack: tuple[int, ...] = (1,)

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_px // PATCH

    @property
    def visual_tokens(self) -> int:
        return (self.grid // MERGE) ** 2


def config_for(size: ModelSize, tokenizer: Tokenizer) -> Qwen3VLConfig:
    """The transformers configuration of a model of this size for this tokenizer."""
    ids = {name: token_id(tokenizer, name) for name in (END_OF_TEXT, END_OF_TURN, IMAGE_PAD)}
    vocabulary = -(-tokenizer.get_vocab_size() // 64) * 64
    text = {
        "vocab_size": vocabulary,
        "hidden_size": size.width,
        "intermediate_size": size.ffn,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.head_dim,
        "max_position_embeddings": 8192,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [12, 10, 10],
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": ids[END_OF_TURN],
        "pad_token_id": ids[END_OF_TEXT],
    }
    vision = {
        "depth": size.vision_depth,
        "hidden_size": size.vision_width,
        "intermediate_size": size.vision_ffn,
        "num_heads": size.vision_heads,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "out_hidden_size": size.width,
        "num_position_embeddings": size.grid**2,
        "deepstack_visual_indexes": list(size.deepstack),
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids[IMAGE_PAD],
        video_token_id=token_id(tokenizer, "<|video_pad|>"),
        vision_start_token_id=token_id(tokenizer, "<|vision_start|>"),
        vision_end_token_id=token_id(tokenizer, "<|vision_end|>"),
        tie_word_embeddings=True,
        eos_token_id=ids[END_OF_TURN],
        pad_token_id=ids[END_OF_TEXT],
    )


def new_model(size: ModelSize, tokenizer: Tokenizer) -> Qwen3VLForConditionalGeneration:
    """A model with fresh random weights, float32."""
    return Qwen3VLForConditionalGeneration(config_for(size, tokenizer))
