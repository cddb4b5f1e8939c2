"""Plug-ins for other tools, called by the tools where those are installed."""

import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simpleseg.errors import InvalidInputError, MissingPackageError
from simpleseg.formats.packages import optional
from simpleseg.integrations import cvat
from simpleseg.integrations import fiftyone as fiftyone_models
from simpleseg_server.engines.base import GenerationRequest
from simpleseg_server.engines.scripted import Reply, ScriptedEngine

from .serving import TRIANGLE, serving

TWO_PARTS = "[[[0.1, 0.1], [0.3, 0.1], [0.3, 0.3]], [[0.6, 0.6], [0.9, 0.6], [0.9, 0.9]]]."
ROOT = Path(__file__).parents[2]


def script(request: GenerationRequest) -> Reply:
    """A triangle for the dog, two parts for the red car, nothing for all else."""
    if "the red car" in request.instruction:
        return Reply(TWO_PARTS)
    return Reply(TRIANGLE if "dog" in request.instruction else "[].")


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(script)


@pytest.fixture
def url(engine: ScriptedEngine) -> Iterator[str]:
    with serving(engine, api_keys=("sk-tool",)) as url:
        yield url


@pytest.fixture
def picture() -> Image.Image:
    return Image.new("RGB", (80, 40), "red")


def test_a_missing_package_is_told_with_its_extra() -> None:
    with pytest.raises(MissingPackageError, match=r"simpleseg-server\[some-extra\]"):
        optional("no_such_package.part", extra="some-extra")


def test_the_modules_import_without_their_tools() -> None:
    names = ("cvat_sdk", "fiftyone")
    code = (
        "import sys, simpleseg.integrations.cvat, simpleseg.integrations.fiftyone;"
        f"print([name for name in {names!r} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


class TestCvat:
    """With ``cvat_sdk`` itself: its loader of functions, its checks, its mapping of labels."""

    @pytest.fixture(autouse=True)
    def toolkit(self) -> Any:
        return pytest.importorskip("cvat_sdk.auto_annotation")

    @pytest.fixture
    def detector(self, url: str) -> Iterator[Any]:
        detector = cvat.create("dog, car=the red car, cat", url, "sk-tool")
        with detector.client:
            yield detector

    def context(self, least: float | None = None) -> Any:
        driver: Any = import_module("cvat_sdk.auto_annotation.driver")
        return driver._DetectionFunctionContextImpl(frame_name="a.png", conf_threshold=least)

    def test_the_labels_are_declared(self, detector: Any, toolkit: Any) -> None:
        assert isinstance(detector.spec, toolkit.DetectionFunctionSpec)
        labels = [(label.id, label.name, label.type) for label in detector.spec.labels]
        assert labels == [(0, "dog", "polygon"), (1, "car", "polygon"), (2, "cat", "polygon")]

    def test_polygons_in_pixels(self, detector: Any, picture: Image.Image) -> None:
        dog, *car = detector.detect(self.context(), picture)
        assert (dog.type.value, dog.label_id) == ("polygon", 0)
        assert dog.points == [20.0, 10.0, 60.0, 10.0, 40.0, 30.0]
        assert [one.label_id for one in car] == [1, 1]
        assert car[0].group == car[1].group == 2

    def test_the_threshold(self, detector: Any, picture: Image.Image) -> None:
        assert detector.detect(self.context(1.0), picture) == []

    def test_cvats_own_driver_takes_what_is_found(
        self, detector: Any, picture: Image.Image
    ) -> None:
        models: Any = import_module("cvat_sdk.models")
        driver: Any = import_module("cvat_sdk.auto_annotation.driver")
        here = [
            models.Label(id=70 + k, name=name, type="any", sublabels=[], attributes=[])
            for k, name in enumerate(("dog", "cat", "car"))
        ]
        mapper = driver._AnnotationMapper(
            logging.getLogger(),
            detector.spec.labels,
            here,
            allow_unmatched_labels=False,
            conv_mask_to_poly=False,
        )
        found = detector.detect(self.context(), picture)
        _, shapes = mapper.validate_and_remap(found, ds_frame=3)
        assert [(shape.label_id, shape.frame) for shape in shapes] == [(70, 3), (72, 3), (72, 3)]

    def test_labels_are_needed(self, url: str) -> None:
        with pytest.raises(InvalidInputError, match="label"):
            cvat.create(" , ", url)

    @pytest.mark.parametrize("how", ["module", "file"])
    def test_cvat_cli_loads_it(self, how: str, url: str, picture: Image.Image) -> None:
        common = pytest.importorskip("cvat_cli._internal.common")
        file = Path(str(cvat.__file__)) if how == "file" else None
        module = cvat.__name__ if how == "module" else None
        parameters = {"labels": "dog", "url": url, "api_key": "sk-tool"}
        function = common.FunctionLoader(module, file, parameters).load()
        with function.client:
            (shape,) = function.detect(self.context(), picture)
        assert shape.label_id == 0


class TestFiftyone:
    @pytest.fixture(autouse=True)
    def fiftyone(self) -> Any:
        return pytest.importorskip("fiftyone")

    @pytest.fixture
    def model(self, url: str) -> Iterator[Any]:
        model = fiftyone_models.load_model("dog, car=the red car, cat", url, "sk-tool")
        yield model
        model.close()

    def test_it_is_a_model_of_theirs(self, model: Any, fiftyone: Any) -> None:
        assert isinstance(model, fiftyone.core.models.Model)
        assert model.media_type == "image"

    def test_polylines(self, model: Any, fiftyone: Any, picture: Image.Image) -> None:
        found = model.predict(np.array(picture))
        assert isinstance(found, fiftyone.Polylines)
        dog, car = found.polylines
        assert (dog.label, car.label) == ("dog", "car")
        (ring,) = dog.points
        assert list(map(tuple, ring)) == [(0.25, 0.25), (0.75, 0.25), (0.5, 0.75)]
        assert len(car.points) == 2
        assert 0 < dog.confidence <= 1

    def test_detections_with_masks(self, url: str, fiftyone: Any, picture: Image.Image) -> None:
        model = fiftyone_models.load_model(["dog"], url, "sk-tool", label_type="detection")
        (dog,) = model.predict(np.array(picture)).detections
        model.close()
        assert dog.bounding_box == pytest.approx([0.25, 0.25, 0.5, 0.5], abs=0.06)
        assert dog.mask.any()

    def test_a_batch_of_any_sizes(self, model: Any) -> None:
        sizes = [(40, 80, 3), (30, 20, 3), (64, 64, 3)]
        found = model.predict_all([np.zeros(size, np.uint8) for size in sizes])
        assert [len(one.polylines) for one in found] == [2, 2, 2]

    def test_the_model_zoo_finds_it(
        self, url: str, fiftyone: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        foz: Any = import_module("fiftyone.zoo")
        shutil.copytree(ROOT / "examples/integrations/fiftyone_zoo", tmp_path / "simpleseg")
        monkeypatch.setattr(fiftyone.config, "model_zoo_dir", str(tmp_path))
        assert "simpleseg/server" in foz.list_zoo_models()
        model = foz.load_zoo_model("simpleseg/server", labels="dog", url=url, api_key="sk-tool")
        found = model.predict(np.zeros((40, 80, 3), np.uint8))
        model.close()
        assert [one.label for one in found.polylines] == ["dog"]

    @pytest.mark.slow
    @pytest.mark.parametrize("batch_size", [None, 4])
    def test_apply_model(
        self,
        batch_size: int | None,
        model: Any,
        fiftyone: Any,
        picture: Image.Image,
        tmp_path: Path,
    ) -> None:
        for name in "abc":
            picture.save(tmp_path / f"{name}.png")
        try:
            dataset = fiftyone.Dataset.from_dir(str(tmp_path), fiftyone.types.ImageDirectory)
        except fiftyone.core.config.FiftyOneConfigError:
            pytest.skip("FiftyOne finds no MongoDB for its data sets")
        try:
            options = {"batch_size": batch_size, "confidence_thresh": 0.1, "skip_failures": False}
            dataset.apply_model(model, label_field="found", **options)
            labels = dataset.values("found.polylines.label")
        finally:
            dataset.delete()
        assert labels == [["dog", "car"]] * 3
