"""Grounding DINO through transformers (arXiv 2303.05499): boxes for words."""

from collections.abc import Sequence

import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForZeroShotObjectDetection,
    AutoTokenizer,
    GroundingDinoProcessor,
)

from simpleseg_polygon.geometry import Box
from simpleseg_training.annotate.parts import Detection, Image

_TEXT_THRESHOLD = 0.25


class GroundingDino:
    """``IDEA-Research/grounding-dino-tiny``, ``-base``, or a folder. Runs on a GPU if there is one.

    ``threshold`` is the least score of a box; the gate may ask for more.
    """

    def __init__(self, path: str, labels: Sequence[str], threshold: float = 0.2) -> None:
        if not labels:
            raise ValueError("Grounding DINO looks for words: name them with --labels")
        # The whole processor by AutoProcessor would want torchvision.
        images, words = (
            AutoImageProcessor.from_pretrained(path),
            AutoTokenizer.from_pretrained(path),
        )
        self._processor = GroundingDinoProcessor(images, words)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModelForZeroShotObjectDetection.from_pretrained(path)
        self._model = model.to(self._device).eval()
        # The form that it was trained with: lower case, each ending in a full stop.
        self._labels = [label.strip().lower() for label in labels]
        self._text = " ".join(f"{label}." for label in self._labels)
        self._threshold = threshold

    @torch.inference_mode()
    def detect(self, image_hw3: Image) -> list[Detection]:
        inputs = self._processor(images=image_hw3, text=self._text, return_tensors="pt")
        inputs = inputs.to(self._device)
        outputs = self._model(**inputs)
        (found,) = self._processor.post_process_grounded_object_detection(
            outputs,
            inputs["input_ids"],
            threshold=self._threshold,
            text_threshold=_TEXT_THRESHOLD,
            target_sizes=[(1, 1)],  # so boxes stay normalised
        )
        read = [asked_label(text, self._labels) for text in found["text_labels"]]
        return [
            Detection(label, float(score), Box(*box.clamp(0, 1).tolist()))
            for label, score, box in zip(read, found["scores"], found["boxes"], strict=True)
            if label is not None
        ]


def asked_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that shares most words with what the model read out of the text, which may be a
    part of a label or run over two; None where none does.

    >>> asked_label("light. dog", ["dog", "traffic light"])
    'dog'
    """
    words = set(text.replace(".", " ").split())
    shares = [len(words & set(label.split())) / len(label.split()) for label in labels]
    best = max(shares)
    return labels[shares.index(best)] if best else None
