"""FiftyOne: a model that asks a SimpleSeg server, for ``dataset.apply_model``."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Literal

from simpleseg.client import SimpleSeg
from simpleseg.formats.packages import optional
from simpleseg.image_input import ImageInput
from simpleseg.integrations.labels import Labels, phrases_of
from simpleseg.results import Segmentation

LabelType = Literal["polyline", "detection"]


def load_model(
    labels: Labels,
    url: str | None = None,
    api_key: str | None = None,
    *,
    label_type: LabelType = "polyline",
    concurrency: int = 8,
) -> Any:
    """A ``fiftyone.Model`` that looks for one object of every label in an image.

    It gives ``Polylines``, or ``Detections`` with masks. ``apply_model``'s ``batch_size`` says how
    many images are read together, of which ``concurrency`` are asked about at once. ``url`` and
    ``api_key`` default to the environment's, as those of ``SimpleSeg``. The connection stays for
    further datasets until ``close``.

    Raises MissingPackageError without ``fiftyone``, InvalidInputError without labels.
    """
    phrases = phrases_of(labels)
    client = SimpleSeg(url, api_key=api_key)
    return _model_class()(client, phrases, label_type, concurrency)


@cache
def _model_class() -> type[Any]:
    """FiftyOne accepts nothing but subclasses of its own."""
    models: Any = optional("fiftyone.core.models", extra="fiftyone")
    return type("SimpleSegModel", (_Predictor, models.Model), {})


class _Predictor:
    """What a ``fiftyone.Model`` has to do."""

    media_type = "image"
    ragged_batches = False
    """Images of a batch may differ in size: they are not stacked, since nothing transforms them."""
    transforms = None
    preprocess = False
    config = None

    def __init__(
        self,
        client: SimpleSeg,
        phrases: Mapping[str, str],
        label_type: LabelType,
        concurrency: int,
    ) -> None:
        self._client = client
        self._phrases = phrases
        self._label_type: LabelType = label_type
        self._concurrency = concurrency

    def predict(self, arg: ImageInput) -> Any:
        """The labels of one image, a uint8 array of shape (height, width, 3)."""
        return self._labels(self._client.segment(arg, list(self._phrases.values())))

    def predict_all(self, args: Iterable[ImageInput]) -> list[Any]:
        """The labels of each image."""
        phrases = list(self._phrases.values())
        outcomes = self._client.segment_many(args, phrases, concurrency=self._concurrency)
        return [self._labels(outcome.results) for outcome in outcomes]

    def close(self) -> None:
        """Close the connection to the server."""
        self._client.close()

    def _labels(self, results: Sequence[Segmentation]) -> Any:
        fiftyone = optional("fiftyone")
        found = [
            self._label(label, result)
            for label, result in zip(self._phrases, results, strict=True)
            if result.region.parts
        ]
        if self._label_type == "polyline":
            return fiftyone.Polylines(polylines=found)
        return fiftyone.Detections(detections=found)

    def _label(self, label: str, result: Segmentation) -> Any:
        found = result.to_fiftyone(label_type=self._label_type)
        found.label = label
        return found
