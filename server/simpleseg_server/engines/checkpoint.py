"""A Qwen-VL checkpoint as the embedded engine uses it: weights, prompt, pixels, vocabulary."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForImageTextToText

from simpleseg_server.engines.base import Turn
from simpleseg_server.engines.image_limits import load_image_processor
from simpleseg_server.engines.kv_rows import KeyValueRows
from simpleseg_server.engines.picture import stretched
from simpleseg_server.engines.profiles import Profile
from simpleseg_server.engines.prompting import Prompter


@dataclass(frozen=True)
class Patches:
    """One image as the vision tower takes it: (patches, values) float32 and its grid (1, 3)."""

    pixel_values: Tensor
    grid_thw: Tensor


@dataclass(frozen=True)
class ImageFeatures:
    """One image as the language model takes it: the vision tower's output, and its patch grid."""

    encoded: Any
    grid_thw: Tensor


@dataclass(frozen=True)
class Prompt:
    """Token ids (1, length), their rotary positions (3, 1, length), and which are visual."""

    input_ids: Tensor
    token_types: Tensor
    position_ids: Tensor

    def __len__(self) -> int:
        return self.input_ids.shape[1]

    @property
    def position_offset(self) -> int:
        """What the rotary position of a token after the prompt is ahead of its place in the row."""
        return int(self.position_ids.max()) + 1 - len(self)


class Checkpoint:
    """Weights and everything that turns requests into tensors and ids into text.

    ``vocabulary`` gives the bytes of every token but the control tokens; ``end_token_id`` ends an
    answer under the grammar, ``stop_token_ids`` are all that end one without it. ``input_hw`` is
    the one image size of the model's training, if the checkpoint names one.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str,
        dtype: str | None = None,
        max_pixels: int | None = None,
    ) -> None:
        """Load from a directory or a hub id, in the profile's dtype where none is given. Raises
        ValueError for models the engine cannot run."""
        self.profile = Profile.load(str(path))
        if self.profile.needs_vllm:
            raise ValueError("the embedded engine cannot run this architecture; use --engine vllm")
        self.model = _load_model(str(path), device, dtype or self.profile.dtype)
        self._cache_argument = _cache_argument(self.model)
        self._images = load_image_processor(str(path), self.profile, max_pixels)
        self.name, self.input_hw = self.profile.name, self.profile.input_hw
        self._prompter = Prompter(str(path), self.profile)
        self.vocabulary = self._prompter.vocabulary
        self.end_token_id = self._prompter.end_token_id
        self.stop_token_ids = _stop_token_ids(self.model, self.end_token_id)

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    @property
    def parameters(self) -> int:
        """How many weights the model has."""
        return sum(weight.numel() for weight in self.model.parameters())

    @property
    def max_positions(self) -> int:
        """The longest prompt plus answer that the model takes."""
        return int(self.model.config.text_config.max_position_embeddings)

    @property
    def max_pixels(self) -> int:
        """The area to which larger images are scaled down."""
        if self.input_hw is not None:
            return self.input_hw[0] * self.input_hw[1]
        return int(self._images.size["longest_edge"])

    def patches(self, image_hw3: NDArray[np.uint8]) -> Patches:
        """Resize and cut an image; thread-safe, and most of it runs without the interpreter's lock.

        With ``input_hw`` the image is stretched to it, else the processor keeps the aspect ratio.
        """
        batch = self._images.preprocess(
            [stretched(image_hw3, self.input_hw)],
            do_resize=self.input_hw is None,
            return_tensors="pt",
        )
        return Patches(batch["pixel_values"], batch["image_grid_thw"])

    def encode_image(self, patches: Patches) -> ImageFeatures:
        """Run the vision tower."""
        grid = patches.grid_thw.to(self.device)
        encoded = self.model.model.get_image_features(
            patches.pixel_values.to(self.device), grid, return_dict=True
        )
        return ImageFeatures(encoded, grid)

    def read(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        mask: Tensor,
        cache: KeyValueRows,
        features: ImageFeatures | None = None,
    ) -> Tensor:
        """Hidden states (rows, width, values) after each token; ``features`` are those of the image
        in the tokens, where there is one."""
        model = self.model.model
        options = {self._cache_argument: cache, "use_cache": True, "attention_mask": mask}
        if features is None:  # the language model alone: the rest looks for images in the text
            output = model.language_model(input_ids, position_ids=position_ids, **options)
        else:
            images = {"image": features.encoded}
            output = model(
                input_ids, position_ids=position_ids, mm_encoder_outputs=images, **options
            )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def prompt(self, ids: Sequence[int], features: ImageFeatures) -> Prompt:
        """A prompt's ids as the model takes them."""
        input_ids = torch.tensor([list(ids)], device=self.device)
        token_types = (input_ids == self._image_token_id).long()
        position_ids, _ = self.model.model.get_rope_index(
            input_ids, token_types, image_grid_thw=features.grid_thw
        )
        return Prompt(input_ids, token_types, position_ids)

    def prompt_ids(
        self, instruction: str, visual_tokens: int, history: Sequence[Turn] = ()
    ) -> list[int]:
        """The ids of the chat prompt, its image placeholder repeated for every visual token. The
        texts are read as plain text: the names of control tokens in them are spelled out and
        control nothing."""
        ids: list[int] = []
        for token in self._prompter.ids(instruction, history):
            ids += [token] * (visual_tokens if token == self._image_token_id else 1)
        return ids

    def image_end(self, prompt_ids: Sequence[int]) -> int:
        """The place after the last visual token."""
        return len(prompt_ids) - prompt_ids[::-1].index(self._image_token_id)

    def text_ids(self, text: str) -> list[int]:
        """A text as the prompt holds it."""
        return self._prompter.text_ids(text)

    @property
    def _image_token_id(self) -> int:
        return int(self.model.config.image_token_id)

    def visual_tokens(self, features: ImageFeatures) -> int:
        """How many tokens the image takes in a prompt."""
        merge = int(self.model.config.vision_config.spatial_merge_size)
        return int(features.grid_thw.prod()) // merge**2


def _load_model(path: str, device: str, dtype: str) -> Any:
    model: Any = AutoModelForImageTextToText.from_pretrained(
        path, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )
    inner = getattr(model, "model", None)
    if not (hasattr(inner, "get_rope_index") and hasattr(inner, "get_image_features")):
        raise ValueError(f"{type(model).__name__} is not a Qwen2.5-VL or Qwen3-VL model")
    if "sliding_attention" in (getattr(model.config.text_config, "layer_types", None) or ()):
        raise ValueError("models with sliding-window attention are not supported")
    return model.to(device)  # from_pretrained leaves it in evaluation mode


def _cache_argument(model: Any) -> str:
    """What the model calls its cache: renamed after transformers 5.19."""
    names = inspect.signature(model.model.forward).parameters
    return "cache" if "cache" in names else "past_key_values"


def _stop_token_ids(model: Any, end_token_id: int) -> frozenset[int]:
    stops = model.generation_config.eos_token_id
    named = stops if isinstance(stops, list) else [] if stops is None else [stops]
    return frozenset([*named, end_token_id])
