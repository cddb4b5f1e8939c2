"""Write a checkpoint directory that the server, transformers and vLLM load unmodified."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


_OF_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf"}
_INDEX = ".index.json"


def export_run(trainer: Any, files: Path, directory: Path) -> None:
    """``export_trained`` of what the processes of a trainer hold together.

    All of them must call it: each may have a share of the weights only.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    whole = None
    if not hasattr(model, "merge_adapter"):
        whole = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        export_trained(model, files, directory, whole)


def export_trained(
    model: Any, files: Path, directory: Path, state: Mapping[str, torch.Tensor] | None = None
) -> None:
    """The weights of a fine-tuned model beside the small files of the checkpoint it started from.

    ``state`` are the weights where the model's own are not whole. Adapters are merged into the
    weights that they adapt. Weights have the start's dtype and names.
    The score's calibration is left out of the profile: it was fitted to the answers of other
    weights (`simpleseg calibrate` fits it again). The model passed in is left as it was.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for file in files.iterdir():
        if file.is_file() and file.suffix not in _OF_WEIGHTS and not file.name.endswith(_INDEX):
            shutil.copyfile(file, directory / file.name)
    small = {file.name: file.read_bytes() for file in directory.glob("*.json")}
    dtype = _dtype_of(json.loads(small["config.json"]))
    adapted = hasattr(model, "merge_adapter")
    if adapted:
        model.merge_adapter()
    whole = model.get_base_model() if adapted else model
    weights = {
        name.replace(".base_layer.", "."): tensor.to(dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in (state or whole.state_dict()).items()
        if ".lora_" not in name
    }
    whole.save_pretrained(directory, state_dict=weights)
    if adapted:
        model.unmerge_adapter()
    for name, content in small.items():  # as the start had them, not as transformers writes them
        if not name.endswith(_INDEX):
            (directory / name).write_bytes(content)
    profile = directory / PROFILE_FILE
    if profile.is_file():
        entries = json.loads(profile.read_text())
        entries.pop("calibration", None)
        profile.write_text(json.dumps(entries, indent=1) + "\n")
    for file in directory.iterdir():
        file.chmod(0o644)


def _as(dtype: torch.dtype, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _dtype_of(config: dict[str, Any]) -> torch.dtype:
    named = config.get("dtype") or config.get("torch_dtype") or "float32"
    dtype: torch.dtype = getattr(torch, named)
    return dtype


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
