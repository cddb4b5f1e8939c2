"""Checkpoints with small random weights, and files of pairs to train them on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from simpleseg_polygon.rle import mask_to_rle
from simpleseg_training.examples import make_examples
from simpleseg_training.export import fast_tokenizer, write_checkpoint
from simpleseg_training.model import ModelSize, new_model
from simpleseg_training.scenes import render_scene
from simpleseg_training.tokenizer import END_OF_TEXT, END_OF_TURN, token_id


def demo(folder: Path, tokenizer: Tokenizer, size: ModelSize) -> Path:
    """The demo model's architecture, with a calibration in its profile."""
    torch.manual_seed(0)
    write_checkpoint(new_model(size, tokenizer), tokenizer, size.image_px, folder)
    profile = json.loads((folder / "simpleseg.json").read_text())
    (folder / "simpleseg.json").write_text(json.dumps(profile | {"calibration": {}}))
    return folder


def qwen25(folder: Path, tokenizer: Tokenizer) -> Path:
    """Qwen2.5-VL: its architecture and files, with the demo world's tokenizer, in bfloat16."""
    torch.manual_seed(0)
    text: dict[str, Any] = {
        "vocab_size": -(-tokenizer.get_vocab_size() // 64) * 64,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": token_id(tokenizer, END_OF_TURN),
        "pad_token_id": token_id(tokenizer, END_OF_TEXT),
    }
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_heads": 4,
        "out_hidden_size": 64,
        "window_size": 112,
        "fullatt_block_indexes": [1],
    }
    tokens = {
        f"{name}_token_id": token_id(tokenizer, f"<|{token}|>")
        for name, token in (
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
            ("image", "image_pad"),
            ("video", "video_pad"),
        )
    }
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=False, **tokens
    )
    model = Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16)
    model.generation_config.eos_token_id = text["eos_token_id"]
    model.generation_config.pad_token_id = text["pad_token_id"]
    model.save_pretrained(folder)
    fast_tokenizer(tokenizer).save_pretrained(folder)
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "size": {"shortest_edge": 3136, "longest_edge": 12_845_056},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def write_pairs(folder: Path, count: int = 8) -> Path:
    """A JSONL file of pairs about drawn scenes; every other record has a mask."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for seed in range(2_000_000, 2_000_000 + count):
        rendering = render_scene(seed, 1, 1, 84)
        made = make_examples(np.random.default_rng(seed), rendering, 1, {("text", "region"): 1.0})
        image = f"{seed}.png"
        Image.fromarray(rendering.image_hw3).save(folder / image)
        record: dict[str, Any] = {
            "image": image,
            "instruction": made[0].instruction,
            "answer": made[0].answer,
            "task": list(made[0].task),
            "id": str(seed),
        }
        if seed % 2:
            record["truth_rle"] = mask_to_rle(made[0].mask_hw).to_coco()
        lines.append(json.dumps(record))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "pairs.jsonl"
