"""What the pipeline is put together from, and how a part is named on the command line."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from simpleseg_polygon.geometry import Box

Image = NDArray[np.uint8]
"""RGB of shape (H, W, 3)."""


@dataclass(frozen=True)
class Detection:
    """A box with what is in it; ``score`` is in [0, 1]."""

    label: str
    score: float
    box: Box


class Detector(Protocol):
    """Finds objects in an image."""

    def detect(self, image_hw3: Image) -> list[Detection]: ...


class Segmenter(Protocol):
    """Turns boxes into masks of shape (H, W), one for each, in their order."""

    def segment(self, image_hw3: Image, boxes: Sequence[Box]) -> list[NDArray[np.bool_]]: ...


class Describer(Protocol):
    """Names each object by a phrase that is true of it alone; "" where it cannot. ``seen`` is all
    that was detected, kept or not."""

    def describe(
        self, image_hw3: Image, found: Sequence[Detection], seen: Sequence[Detection]
    ) -> list[str]: ...


def load_detector(name: str, labels: Sequence[str]) -> Detector:
    """``grounding-dino:ID``, ``objectron:FOLDER``, or ``python:module.factory``, which is called
    with the labels. Raises ValueError for another name."""
    kind, _, place = name.partition(":")
    if kind == "grounding-dino" and place:
        from simpleseg_training.annotate.grounding_dino import GroundingDino

        return GroundingDino(place, labels)
    if kind == "objectron" and place:
        from simpleseg_training.annotate.packaged import Objectron

        return Objectron(place, labels)
    if kind == "python" and place:
        made: Detector = _factory(place)(labels)
        return made
    raise ValueError(
        f"no detector {name!r}: use grounding-dino:ID, objectron:FOLDER or python:module.factory"
    )


def load_segmenter(name: str) -> Segmenter:
    """``sam:ID`` (SAM or SAM 2), ``isnet:FOLDER``, or ``python:module.factory``. Raises ValueError
    for another name."""
    kind, _, place = name.partition(":")
    if kind == "sam" and place:
        from simpleseg_training.annotate.sam import Sam

        return Sam(place)
    if kind == "isnet" and place:
        from simpleseg_training.annotate.packaged import IsNet

        return IsNet(place)
    if kind == "python" and place:
        made: Segmenter = _factory(place)()
        return made
    raise ValueError(f"no segmenter {name!r}: use sam:ID, isnet:FOLDER or python:module.factory")


def _factory(place: str) -> Any:
    module, _, attribute = place.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"nothing to call at {place!r}: {error}") from error
