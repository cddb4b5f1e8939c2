"""Write a checkpoint of Qwen2.5-VL-7B's architecture with random weights, for a machine without
network: speed does not depend on what the weights say.

    python benchmarks/gpu/make_checkpoint.py --out FOLDER [--scale 7b|tiny] [--device cuda]

The sizes are the published configuration's; ``tiny`` keeps the architecture and the vocabulary, and
is for rehearsals. The tokenizer is Qwen's own. Tensors are drawn one by one, in bfloat16, straight
into shards, so that memory holds one shard at most.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from simpleseg_training.export import fast_tokenizer
from simpleseg_training.tokenizer import END_OF_TEXT, END_OF_TURN, qwen_tokenizer_file, token_id

SHARD_BYTES = 4 * 2**30
VOCABULARY = 152_064
DEVIATION = 0.02
INDEX_FILE = "model.safetensors.index.json"

TEXT: dict[str, dict[str, Any]] = {
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [16, 24, 24],
        },
    },
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [8, 12, 12],
        },
    },
}
VISION: dict[str, dict[str, Any]] = {
    "7b": {
        "depth": 32,
        "hidden_size": 1280,
        "num_heads": 16,
        "intermediate_size": 3420,
        "out_hidden_size": 3584,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
    "tiny": {
        "depth": 2,
        "hidden_size": 64,
        "num_heads": 2,
        "intermediate_size": 128,
        "out_hidden_size": 128,
        "window_size": 112,
        "fullatt_block_indexes": [1],
    },
}


def config_for(scale: str, tokenizer: Tokenizer) -> Qwen2_5_VLConfig:
    text = TEXT[scale] | {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": token_id(tokenizer, END_OF_TURN),
        "pad_token_id": token_id(tokenizer, END_OF_TEXT),
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=VISION[scale] | {"patch_size": 14, "spatial_merge_size": 2},
        image_token_id=token_id(tokenizer, "<|image_pad|>"),
        video_token_id=token_id(tokenizer, "<|video_pad|>"),
        vision_start_token_id=token_id(tokenizer, "<|vision_start|>"),
        vision_end_token_id=token_id(tokenizer, "<|vision_end|>"),
        tie_word_embeddings=False,
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        dtype="bfloat16",
    )


def shapes_of(config: Qwen2_5_VLConfig) -> dict[str, torch.Size]:
    """The name and shape of every weight, without any of them in memory."""
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def shards_of(shapes: dict[str, torch.Size]) -> Iterator[list[str]]:
    """The names in order, in groups of at most SHARD_BYTES."""
    group: list[str] = []
    size = 0
    for name, shape in shapes.items():
        needed = 2 * shape.numel()
        if group and size + needed > SHARD_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += needed
    yield group


def draw(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Matrices from a normal distribution, scales 1, biases 0."""
    if len(shape) > 1:
        tensor = torch.empty(shape, dtype=torch.bfloat16, device=generator.device)
        return tensor.normal_(0, DEVIATION, generator=generator).cpu()
    return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=torch.bfloat16)


def write_weights(shapes: dict[str, torch.Size], out: Path, generator: torch.Generator) -> int:
    """Shards and their index; gives the bytes of all weights."""
    groups = list(shards_of(shapes))
    places: dict[str, str] = {}
    for number, names in enumerate(groups, 1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        tensors = {name: draw(name, shapes[name], generator) for name in names}
        save_file(tensors, out / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    total = sum(2 * shape.numel() for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (out / INDEX_FILE).write_text(json.dumps(index, indent=1) + "\n")
    return total


def step_bytes(shapes: dict[str, torch.Size]) -> int:
    """What a decode step reads of the weights: all but the vision tower and the embedding table,
    of which it reads one row a token."""
    read = [shape for name, shape in shapes.items() if _is_read_each_step(name)]
    return sum(2 * shape.numel() for shape in read)


def _is_read_each_step(name: str) -> bool:
    return "visual." not in name and "embed_tokens" not in name


def main() -> None:
    parser = argparse.ArgumentParser(description="A checkpoint of Qwen2.5-VL with random weights.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scale", choices=list(TEXT), default="7b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object, last")
    options = parser.parse_args()

    began = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(qwen_tokenizer_file()))
    config = config_for(options.scale, tokenizer)
    config.save_pretrained(options.out)
    fast_tokenizer(tokenizer).save_pretrained(options.out)
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280},
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "processor_class": "Qwen2_5_VLProcessor",
    }
    (options.out / "preprocessor_config.json").write_text(json.dumps(processor, indent=1) + "\n")
    shapes = shapes_of(config)
    generator = torch.Generator(options.device).manual_seed(options.seed)
    figures = {
        "scale": options.scale,
        "weights_bytes": write_weights(shapes, options.out, generator),
        "step_bytes": step_bytes(shapes),
        "seconds": round(time.monotonic() - began, 1),
    }
    (options.out / "sizes.json").write_text(json.dumps(figures) + "\n")
    print(json.dumps(figures) if options.json else figures)


if __name__ == "__main__":
    main()
