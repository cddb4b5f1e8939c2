"""CVAT: an auto-annotation function that asks a SimpleSeg server.

As a module of ``cvat-cli``, for a task that has the labels::

    cvat-cli task auto-annotate 41 --function-module simpleseg.integrations.cvat \\
        -p labels=str:"dog, car=the red car" -p url=str:http://127.0.0.1:8000

or, with ``cvat-cli function create-native`` and ``run-agent``, for CVAT's own users to call.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from simpleseg.client import SimpleSeg
from simpleseg.formats.packages import optional
from simpleseg.formats.rings import PARTS_PER_PIXEL, polygons_px, to_unit, without_hole
from simpleseg.integrations.labels import Labels, phrases_of
from simpleseg.results import Segmentation


def create(labels: Labels, url: str | None = None, api_key: str | None = None) -> "Detector":
    """A detection function of CVAT's (``cvat_sdk.auto_annotation.DetectionFunction``).

    ``url`` and ``api_key`` default to the environment's, as those of ``SimpleSeg``. Raises
    MissingPackageError without ``cvat-sdk``, InvalidInputError without labels.
    """
    toolkit: Any = optional("cvat_sdk.auto_annotation", extra="cvat")
    phrases = phrases_of(labels)
    specs = [toolkit.label_spec(label, k, type="polygon") for k, label in enumerate(phrases)]
    spec = toolkit.DetectionFunctionSpec(labels=specs)
    return Detector(SimpleSeg(url, api_key=api_key), phrases, spec, toolkit)


@dataclass(frozen=True)
class Detector:
    """Looks for one object of every label in an image. ``spec`` is what CVAT reads."""

    client: SimpleSeg
    phrases: Mapping[str, str]
    spec: Any
    toolkit: Any

    def detect(self, context: Any, image: Image.Image) -> list[Any]:
        """Polygons in pixels, the parts of one object in a group of their own.

        Objects with a score below the context's ``conf_threshold`` are left out. Raises
        SimpleSegError, and TooComplexError where outlines cross too often.
        """
        least = context.conf_threshold or 0.0
        results = self.client.segment(image, list(self.phrases.values()))
        kept = (one for one in results if one.score is None or one.score >= least)
        return [shape for one in kept for shape in self._shapes(one)]

    def _shapes(self, result: Segmentation) -> list[Any]:
        polygons = polygons_px(result.region, result.size_hw)
        group = {"group": result.index + 1} if len(polygons) > 1 else {}
        rings = (to_unit(without_hole(polygon), PARTS_PER_PIXEL) for polygon in polygons)
        return [
            self.toolkit.polygon(result.index, [number for xy in ring for number in xy], **group)
            for ring in rings
        ]
