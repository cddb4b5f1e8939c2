"""Write a checkpoint directory that the server, transformers and vLLM load unmodified."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

from simpleseg_training.model import MERGE, PATCH
from simpleseg_training.tokenizer import (
    CHAT_TEMPLATE,
    CONTROL_TOKENS,
    END_OF_TEXT,
    END_OF_TURN,
    token_id,
)

PROFILE_FILE = "simpleseg.json"


def write_checkpoint(
    model: Qwen3VLForConditionalGeneration,
    tokenizer: Tokenizer,
    image_px: int,
    directory: Path,
    dtype: torch.dtype = torch.bfloat16,
    name: str = "simpleseg-demo",
) -> None:
    """Weights in ``dtype``, configs, tokenizer, chat template and the serving profile.

    The profile ``simpleseg.json`` holds the model's name as clients see it, and the one image size
    (``input_hw``) it was trained on.
    The model passed in is left as it was.
    """
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    generation = model.generation_config
    generation.eos_token_id = token_id(tokenizer, END_OF_TURN)
    generation.pad_token_id = token_id(tokenizer, END_OF_TEXT)
    model.save_pretrained(directory, state_dict=weights)
    _name_dtype(directory / "config.json", dtype)
    for file in directory.iterdir():
        file.chmod(0o644)  # safetensors writes files that only their owner may read
    fast_tokenizer(tokenizer).save_pretrained(directory)
    _write_image_configs(directory, image_px, name)


def _name_dtype(config_file: Path, dtype: torch.dtype) -> None:
    """Say which dtype the weights are stored in: transformers names the one they had in memory."""
    config = json.loads(config_file.read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = str(dtype).removeprefix("torch.")
    config_file.write_text(json.dumps(config, indent=2) + "\n")


def fast_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers knows it, with its chat template."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        model_max_length=8192,
        additional_special_tokens=list(CONTROL_TOKENS[1:]),
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _write_image_configs(directory: Path, image_px: int, name: str) -> None:
    common = {
        "size": {"shortest_edge": image_px**2, "longest_edge": image_px**2},
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "processor_class": "Qwen3VLProcessor",
    }
    files = {
        "preprocessor_config.json": common | {"image_processor_type": "Qwen2VLImageProcessor"},
        "video_preprocessor_config.json": common
        | {"video_processor_type": "Qwen3VLVideoProcessor"},
        PROFILE_FILE: {"name": name, "input_hw": [image_px, image_px]},
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=1) + "\n")
