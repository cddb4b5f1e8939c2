"""A checkpoint as fine-tuning uses it: weights, processor, and the one image size it may have."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
    Qwen2_5_VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin

from simpleseg_training.export import PROFILE_FILE
from simpleseg_training.train_config import ModelConfig

VISION = r"(.*\.)?(visual|vision_tower)\..*"
"""Names of the modules and weights of the vision tower."""
_WEIGHTS = ["*.safetensors", "*.bin", "*.pt", "*.pth", "*.index.json"]


class QwenImageProcessor(Qwen2_5_VLProcessor):  # type: ignore[misc]
    """The processor of Qwen2.5-VL and Qwen3-VL for still images.

    Theirs want a video processor, and that wants torchvision. Pixels are those of the server's
    embedded engine, which uses the Pillow class as well.
    """

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None) -> None:
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
        self.video_processor = None
        names = {
            "image": "<|image_pad|>",
            "video": "<|video_pad|>",
            "vision_start": "<|vision_start|>",
            "vision_end": "<|vision_end|>",
        }
        for name, token in names.items():
            setattr(self, f"{name}_token", token)
            setattr(self, f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))


@dataclass(frozen=True)
class Start:
    """What a run starts from. ``files`` is the folder of the checkpoint's small files; ``input_hw``
    the image size of its training, to which images are stretched, as the server does."""

    model: PreTrainedModel
    processor: Any
    files: Path
    input_hw: tuple[int, int] | None

    def fitted(self, image: Image.Image) -> Image.Image:
        """The image as the model takes it."""
        if self.input_hw is None or image.size == self.input_hw[::-1]:
            return image
        return image.resize(self.input_hw[::-1], Image.Resampling.BICUBIC)


def load_start(config: ModelConfig, weights: Path | None = None) -> Start:
    """Load a folder or hub id, with other weights where a run goes on from them.

    Raises ValueError where none is named, OSError where it cannot be had.
    """
    if config.path is None:
        raise ValueError("model.path: names no checkpoint to start from")
    files = small_files(config.path)
    profile = files / PROFILE_FILE
    size = json.loads(profile.read_text()).get("input_hw") if profile.is_file() else None
    model = _load_model(config, weights or config.path)
    if config.freeze_vision:
        _freeze_vision(model)
    return Start(model, load_processor(files, config), files, tuple(size) if size else None)


def small_files(path: str) -> Path:
    """The folder with everything of a checkpoint but its weights."""
    folder = Path(path)
    return folder if folder.is_dir() else Path(snapshot_download(path, ignore_patterns=_WEIGHTS))


def load_processor(files: Path, config: ModelConfig) -> Any:
    """Images and conversations to tensors. ``max_pixels`` bounds the area of images."""
    code = {"trust_remote_code": config.trust_remote_code}
    kind = AutoConfig.from_pretrained(files, **code).model_type
    if kind not in ("qwen2_5_vl", "qwen3_vl"):
        return AutoProcessor.from_pretrained(files, **code)
    tokenizer = AutoTokenizer.from_pretrained(files, padding_side="left")
    images = Qwen2VLImageProcessorPil.from_pretrained(files)
    if config.max_pixels is not None:
        least = min(int(images.size["shortest_edge"]), config.max_pixels)
        size = {"shortest_edge": least, "longest_edge": config.max_pixels}
        images = Qwen2VLImageProcessorPil.from_pretrained(files, size=size)
    return QwenImageProcessor(images, tokenizer, tokenizer.chat_template)


def _load_model(config: ModelConfig, weights: str | Path) -> PreTrainedModel:
    code = {"trust_remote_code": config.trust_remote_code}
    settings = AutoConfig.from_pretrained(config.path, **code)
    # Kimi-VL's own code names no other class than that of language models.
    by_text = "AutoModelForCausalLM" in (getattr(settings, "auto_map", None) or {})
    kind = AutoModelForCausalLM if by_text else AutoModelForImageTextToText
    model: PreTrainedModel = kind.from_pretrained(
        weights, dtype=getattr(torch, config.dtype), **code
    )
    return model


def _freeze_vision(model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if re.fullmatch(VISION, name):
            parameter.requires_grad_(False)
