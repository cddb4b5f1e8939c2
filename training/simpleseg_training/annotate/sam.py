"""SAM (arXiv 2304.02643) and SAM 2 (arXiv 2408.00714) through transformers: masks for boxes.

Pictures are prepared here, since the processor of SAM 2 exists for torchvision only.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pictures
from torch.nn.functional import interpolate
from transformers import AutoConfig, Sam2Model, SamModel

from simpleseg_polygon.geometry import Box, ImageSize
from simpleseg_training.annotate.parts import Image

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MODELS = {"sam": SamModel, "sam2": Sam2Model, "sam2_video": Sam2Model}
_BOXES_AT_ONCE = 32


class Sam:
    """``facebook/sam-vit-base``, ``facebook/sam2.1-hiera-small``, their sisters, or a folder. Runs
    on a GPU if there is one. Raises ValueError where the checkpoint is neither SAM nor SAM 2."""

    def __init__(self, path: str) -> None:
        kind = AutoConfig.from_pretrained(path).model_type
        if kind not in _MODELS:
            raise ValueError(f"{path}: a checkpoint of {kind!r}, not of SAM or SAM 2")
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = _MODELS[kind].from_pretrained(path).to(self._device).eval()
        self._side = int(self._model.config.prompt_encoder_config.image_size)
        self._stretches = kind != "sam"

    @torch.inference_mode()
    def segment(self, image_hw3: Image, boxes: Sequence[Box]) -> list[NDArray[np.bool_]]:
        size = ImageSize(*image_hw3.shape[:2])
        inner = self._inner(size)
        pixels = self._pixels(image_hw3, inner)
        embeddings = self._model.get_image_embeddings(pixels)
        masks: list[NDArray[np.bool_]] = []
        for start in range(0, len(boxes), _BOXES_AT_ONCE):
            group = np.array(boxes[start : start + _BOXES_AT_ONCE], np.float32)
            scaled = group * np.array([inner.width, inner.height] * 2, np.float32)
            answer = self._model(
                image_embeddings=embeddings,
                input_boxes=torch.from_numpy(scaled)[None].to(self._device),
                multimask_output=True,
            )
            best = answer.iou_scores[0].argmax(dim=-1)
            logits = answer.pred_masks[0][torch.arange(len(best)), best]
            masks.extend(self._masks(logits, inner, size))
        return masks

    def _inner(self, size: ImageSize) -> ImageSize:
        """The size of the picture inside the model's square: SAM 2 stretches, SAM pads."""
        if self._stretches:
            return ImageSize(self._side, self._side)
        scale = self._side / max(size)
        return ImageSize(round(size.height * scale), round(size.width * scale))

    def _pixels(self, image_hw3: Image, inner: ImageSize) -> torch.Tensor:
        resized = Pictures.fromarray(image_hw3).resize((inner.width, inner.height))
        values = (np.asarray(resized, np.float32) / 255 - _MEAN) / _DEVIATION
        padded = np.zeros((self._side, self._side, 3), np.float32)
        padded[: inner.height, : inner.width] = values
        return torch.from_numpy(padded.transpose(2, 0, 1)[None]).to(self._device)

    def _masks(
        self, logits: torch.Tensor, inner: ImageSize, size: ImageSize
    ) -> list[NDArray[np.bool_]]:
        square = [self._side, self._side]
        whole = interpolate(logits[None].float(), square, mode="bilinear", align_corners=False)
        cut = whole[..., : inner.height, : inner.width]
        full = interpolate(cut, list(size), mode="bilinear", align_corners=False)
        return list((full[0] > 0).cpu().numpy())
