"""The reference way to a mask, as the SimpleSeg README goes it: transformers' ``generate``, greedy
and free; a regular expression over the text; pycocotools. One process, one request at a time.

As a program it answers lines of JSON, ``{"png", "instruction"}``, by lines ``{"text", "rle"}``, and
says ``{"ready": true}`` first:

    python benchmarks/reference.py --model FOLDER [--threads N]
"""

import argparse
import base64
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

MAX_TOKENS = 1024

_PART = re.compile(r"\[\s*(?:\[\s*[\d.]+\s*,\s*[\d.]+\s*\]\s*,?\s*)+\]")
_NUMBER = re.compile(r"\d*\.?\d+")


def polygons_of(text: str) -> list[list[float]]:
    """Every part as x, y, x, y, ... in [0, 1].

    >>> polygons_of("[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]].")
    [[0.1, 0.2, 0.5, 0.2, 0.5, 0.9]]
    """
    return [[float(number) for number in _NUMBER.findall(part)] for part in _PART.findall(text)]


def mask_of(polygons: list[list[float]], height: int, width: int) -> NDArray[np.uint8]:
    """The union of the parts; what pycocotools takes no polygon of (under three points) is left."""
    scaled = [
        (np.array(flat).reshape(-1, 2) * [width, height]).reshape(-1).tolist()
        for flat in polygons
        if len(flat) >= 6
    ]
    if not scaled:
        return np.zeros((height, width), np.uint8)
    mask: NDArray[np.uint8] = coco.decode(coco.merge(coco.frPyObjects(scaled, height, width)))
    return mask


def rle_of(text: str, height: int, width: int) -> dict[str, Any]:
    """The COCO RLE of an answer, its counts as text."""
    rle = coco.encode(np.asfortranarray(mask_of(polygons_of(text), height, width)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


class Reference:
    """A Qwen-VL checkpoint in float32, asked with ``generate``."""

    def __init__(self, path: Path) -> None:
        self._model: Any = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(path)
        self._images = Qwen2VLImageProcessorPil.from_pretrained(path)

    def answer(self, image: Image.Image, instruction: str) -> str:
        inputs = self._inputs(image, instruction)
        output = self._model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        written = output[0, inputs["input_ids"].shape[1] :]
        text: str = self._tokenizer.decode(written, skip_special_tokens=True)
        return text

    def _inputs(self, image: Image.Image, instruction: str) -> dict[str, Any]:
        """What ``AutoProcessor`` makes, which cannot be loaded without torchvision."""
        pixels = self._images.preprocess([image], return_tensors="pt")
        content = [{"type": "image"}, {"type": "text", "text": instruction}]
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        visual_tokens = int(pixels["image_grid_thw"].prod()) // self._images.merge_size**2
        text = text.replace("<|image_pad|>", "<|image_pad|>" * visual_tokens)
        ids = self._tokenizer(text, return_tensors="pt")["input_ids"]
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == self._model.config.image_token_id).long(),
            "pixel_values": pixels["pixel_values"],
            "image_grid_thw": pixels["image_grid_thw"],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, help="torch's; its own choice without it")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    reference = Reference(options.model)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        image = Image.open(io.BytesIO(base64.b64decode(asked["png"]))).convert("RGB")
        text = reference.answer(image, asked["instruction"])
        rle = rle_of(text, image.height, image.width)
        print(json.dumps({"text": text, "rle": rle}), flush=True)


if __name__ == "__main__":
    main()
