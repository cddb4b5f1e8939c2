"""A processor with the interface of Kimi-VL's, as vLLM uses it: stands in for it in tests.

Copied into a checkpoint, and loaded from there by ``trust_remote_code``. An image is scaled down to
the limit of patches, padded to whole merged patches and cut.
"""

import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ProcessorMixin


class KimiVLImageProcessor(BaseImageProcessor):  # type: ignore[misc]
    model_input_names = ["pixel_values", "image_grid_hws"]

    def __init__(
        self,
        patch_size: int = 14,
        in_token_limit: int = 4096,
        merge_kernel_size: tuple[int, int] = (2, 2),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.patch_size = patch_size
        self.in_token_limit = in_token_limit
        self.merge_kernel_size = merge_kernel_size

    def preprocess(self, images: Any, return_tensors: str = "pt", **_: Any) -> BatchFeature:
        cut = [self._patches(image) for image in (images if isinstance(images, list) else [images])]
        data = {
            "pixel_values": torch.cat([patches for patches, _ in cut]),
            "image_grid_hws": torch.tensor([grid for _, grid in cut]),
        }
        return BatchFeature(data, tensor_type=return_tensors)

    def _patches(self, image: Image.Image) -> tuple[torch.Tensor, tuple[int, int]]:
        side = self.patch_size
        patches = (image.width // side) * (image.height // side)
        if patches > self.in_token_limit:
            scale = math.sqrt(self.in_token_limit / patches)
            image = image.resize((int(image.width * scale), int(image.height * scale)))
        pixels = np.asarray(image.convert("RGB"), np.float32) / 127.5 - 1
        steps = [side * kernel for kernel in self.merge_kernel_size]
        padding = [(0, -size % step) for size, step in zip(pixels.shape, steps, strict=False)]
        pixels = np.pad(pixels, [*padding, (0, 0)])
        rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
        grid = pixels.reshape(rows, side, columns, side, 3).transpose(0, 2, 4, 1, 3)
        return torch.from_numpy(grid.reshape(-1, 3, side, side).copy()), (rows, columns)


class KimiVLProcessor(ProcessorMixin):  # type: ignore[misc]
    attributes = ["image_processor", "tokenizer"]
    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: Any = None,
        **_: Any,
    ) -> None:
        self.image_token = "<|media_pad|>"
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(
        self, images: Any = None, text: Any = None, return_tensors: str = "pt", **_: Any
    ) -> BatchFeature:
        data: dict[str, Any] = {}
        if images:
            data |= self.image_processor(images, return_tensors=return_tensors)
        texts = [text] if isinstance(text, str) else text
        if texts:
            data |= self.tokenizer(texts, return_tensors=return_tensors)
        return BatchFeature(data, tensor_type=return_tensors)
