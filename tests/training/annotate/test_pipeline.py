"""The annotation pipeline around parts whose answers are known."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from simpleseg.cli import app
from simpleseg.cli_support import Failure
from simpleseg_polygon.codec import parse_region
from simpleseg_polygon.geometry import Box, ImageSize, Region
from simpleseg_polygon.metrics import iou
from simpleseg_polygon.raster import Rle, region_to_mask, rle_to_mask
from simpleseg_training.annotate import contact_sheet
from simpleseg_training.annotate.describe import LabelDescriber, Unavailable
from simpleseg_training.annotate.gate import Gate
from simpleseg_training.annotate.parts import Detection
from simpleseg_training.annotate.picture import Picture, pictures_in
from simpleseg_training.annotate.pipeline import COUNTS, JOURNAL, SHEET, Parts, Plan, annotate
from simpleseg_training.recombine import box_of
from simpleseg_training.scenes import Rendering, render_scene


@dataclass
class World:
    """Detector, segmenter and describer that know the scenes; each counts its calls."""

    scenes: dict[bytes, Rendering]
    stop_after: int = 1000
    calls: Counter[str] = field(default_factory=Counter)

    def detect(self, image_hw3: NDArray[np.uint8]) -> list[Detection]:
        self.calls["detect"] += 1
        scene = self.scenes[image_hw3.tobytes()]
        return [
            Detection(item.kind, 0.9, box_of(mask))
            for item, mask in zip(scene.scene.objects, scene.masks_hw, strict=True)
        ]

    def segment(
        self, image_hw3: NDArray[np.uint8], boxes: Sequence[Box]
    ) -> list[NDArray[np.bool_]]:
        masks = self.scenes[image_hw3.tobytes()].masks_hw
        return [next(mask for mask in masks if box_of(mask) == box) for box in boxes]

    def describe(
        self, image_hw3: NDArray[np.uint8], found: Sequence[Detection], seen: Sequence[Detection]
    ) -> list[str]:
        if self.calls["describe"] == self.stop_after:
            raise Unavailable("gone")
        self.calls["describe"] += 1
        return [f"the <b>{one.label}</b> & co" for one in found]

    def parts(self, **names: str) -> Parts:
        return Parts(self, self, self, names)


@pytest.fixture
def world(tmp_path: Path) -> World:
    scenes: dict[bytes, Rendering] = {}
    (tmp_path / "photos/more").mkdir(parents=True)
    for seed in range(6):
        rendering = render_scene(seed, 2, 3, 96)
        scenes[rendering.image_hw3.tobytes()] = rendering
        name = f"more/{seed}.png" if seed > 3 else f"{seed}.png"
        Image.fromarray(rendering.image_hw3).save(tmp_path / "photos" / name)
    return World(scenes)


def _plan(folder: Path, out: str = "out", **more: Any) -> Plan:
    return Plan(folder / out, **more)


def _photos(folder: Path) -> list[Picture]:
    return pictures_in(folder / "photos")


def test_pairs_are_about_the_objects(world: World, tmp_path: Path) -> None:
    counts = annotate(_plan(tmp_path), _photos(tmp_path), world.parts())
    records = [json.loads(line) for line in (tmp_path / "out/pairs.jsonl").read_text().splitlines()]
    assert counts["images"] == 6
    assert counts["detected"] == counts["objects"] + sum(counts["removed"].values())
    assert counts["pairs"] == len(records) >= 3 * counts["objects"] > 12
    assert json.loads((tmp_path / "out" / COUNTS).read_text()) == counts
    for record in records:
        assert (tmp_path / "out" / record["image"]).is_file()
        truth = rle_to_mask(Rle.from_coco(record["truth_rle"]))
        if record["task"][1] == "region":
            label = region_to_mask(parse_region(record["answer"]).value, ImageSize(*truth.shape))
            assert iou(label, truth) > 0.85
    assert len({record["id"] for record in records}) == len(records)


@pytest.mark.parametrize("stop_after", [0, 1, 3, 5])
def test_a_stopped_run_goes_on_and_does_nothing_twice(
    world: World, tmp_path: Path, stop_after: int
) -> None:
    annotate(_plan(tmp_path, "whole"), _photos(tmp_path), world.parts())
    world.calls.clear()
    world.stop_after = stop_after
    with pytest.raises(Unavailable):
        annotate(_plan(tmp_path), _photos(tmp_path), world.parts())
    with (tmp_path / "out" / JOURNAL).open("ab") as journal:
        journal.write(b'{"image": "0.png", "obj')  # what a crash leaves
    world.stop_after = 1000
    annotate(_plan(tmp_path), _photos(tmp_path), world.parts())
    assert world.calls == {"describe": 6, "detect": 7}  # one was detected when it stopped
    for name in ("pairs.jsonl", COUNTS, SHEET):
        assert (tmp_path / "out" / name).read_text() == (tmp_path / "whole" / name).read_text()
    annotate(_plan(tmp_path), _photos(tmp_path), world.parts())
    assert world.calls["detect"] == 7


def test_a_journal_is_of_one_run_with_one_setting(world: World, tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    annotate(plan, _photos(tmp_path), world.parts(detector="a"))
    with pytest.raises(ValueError, match=r"other settings \(detector, score\)"):
        annotate(replace(plan, gate=Gate(score=0.5)), _photos(tmp_path), world.parts(detector="b"))

    @dataclass
    class Second(World):
        def detect(self, image_hw3: NDArray[np.uint8]) -> list[Detection]:
            with pytest.raises(ValueError, match="in use by another run"):
                annotate(_plan(tmp_path, "other"), _photos(tmp_path), world.parts())
            return super().detect(image_hw3)

    annotate(_plan(tmp_path, "other"), _photos(tmp_path), Second(world.scenes).parts())


def test_copies_and_broken_pictures_are_counted(world: World, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "copy.png").write_bytes((photos / "0.png").read_bytes())
    (photos / "broken.png").write_bytes(b"no picture")
    (photos / "notes.txt").write_text("not looked at")
    counts = annotate(_plan(tmp_path, pairs="pairs.parquet"), _photos(tmp_path), world.parts())
    assert (counts["images"], counts["copied_images"], counts["unreadable_images"]) == (8, 1, 1)
    with pytest.raises(ValueError, match="no pictures in"):
        pictures_in(tmp_path / "out")


def test_the_sheet_shows_what_models_wrote_as_text(world: World, tmp_path: Path) -> None:
    (tmp_path / "photos/0.png").rename(tmp_path / "photos/<i>.png")
    annotate(_plan(tmp_path), _photos(tmp_path), world.parts())
    page = (tmp_path / "out" / SHEET).read_text()
    assert "<b>" not in page
    assert "the &lt;b&gt;" in page
    assert "<i>" not in page
    assert "http" not in page.replace('http-equiv="', "")
    assert page.count("<figure>") == 6


def _mask(*window: slice) -> NDArray[np.bool_]:
    mask = np.zeros((100, 100), np.bool_)
    mask[window] = True
    return mask


def test_every_filter_counts_what_it_removes() -> None:
    gate = Gate(most_vertices=12)
    removed: Counter[Any] = Counter()
    boxes = [Box(0.1, 0.1, 0.5, 0.5), Box(0.1, 0.1, 0.5, 0.49), Box(0.6, 0.6, 0.9, 0.9)]
    found = [
        Detection("dog", score, box) for score, box in zip((0.9, 0.8, 0.1), boxes, strict=True)
    ]
    assert gate.detections(found, removed) == [found[0]]
    square, comb = _mask(slice(10, 50), slice(10, 50)), _mask(slice(10, 50), slice(10, 50))
    comb[10:45, 12:50:8] = False
    masks = {
        "kept": square,
        "same_mask": square,
        "empty_mask": np.zeros((100, 100), np.bool_),
        "too_small": _mask(slice(5), slice(5)),
        "too_large": np.ones((100, 100), np.bool_),
        "leaves_its_box": _mask(slice(10, 80), slice(10, 50)),
    }
    repeated = [found[0]] * len(masks)
    outline = Plan(Path()).contours.region_of
    kept = gate.candidates(repeated, list(masks.values()), outline, removed)
    assert len(kept) == 1
    gate.candidates(found[:1], [comb], outline, removed)
    half = Region((found[0].box.ring()[:3],))
    gate.candidates(found[:1], [square], lambda mask: half, removed)
    assert gate.phrased([0, 1, 2, 3, 4], ["a", "A", "", "b " * 30, "c"], removed) == [(4, "c")]
    expected = {*masks, "same_box", "low_score", "many_vertices", "contour_misses"} - {"kept"}
    assert set(removed) == expected | {"no_phrase", "long_phrase", "shared_phrase"}
    assert removed["shared_phrase"] == 2


def test_labels_tell_outermost_objects_apart() -> None:
    dogs = [Detection("dog", 0.9, Box(x, 0.1, x + 0.1, 0.3)) for x in (0.1, 0.4, 0.7)]
    cat = Detection("cat", 0.9, Box(0.0, 0.0, 0.1, 0.1))
    said = LabelDescriber().describe(np.zeros((2, 2, 3), np.uint8), [*dogs, cat], [*dogs, cat])
    assert said == ["the leftmost dog", "", "the rightmost dog", "the cat"]
    alone = LabelDescriber().describe(np.zeros((2, 2, 3), np.uint8), dogs[:1], dogs)
    assert alone == ["the leftmost dog"]  # though the others were not kept


_MODULE = """
import numpy as np
from simpleseg_polygon.geometry import Box
from simpleseg_training.annotate.parts import Detection

class Part:
    def detect(self, image_hw3):
        return [Detection("square", 0.8, Box(0.25, 0.25, 0.75, 0.75))]
    def segment(self, image_hw3, boxes):
        mask = np.zeros(image_hw3.shape[:2], bool)
        mask[24:72, 24:72] = True
        return [mask for _ in boxes]

def detector(labels):
    assert labels == ["square", "dog"]
    return Part()
"""


def test_the_command_takes_parts_of_ones_own(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_parts.py").write_text(_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["annotate", str(tmp_path / "photos"), "-o", str(tmp_path / "out")]
    arguments += ["--labels", "square, dog", "--segmenter", "python:own_parts.Part"]
    own = [*arguments, "--detector", "python:own_parts.detector", "--form", "tar"]
    run = CliRunner().invoke(app, own, catch_exceptions=False)
    counts = json.loads(run.stdout.splitlines()[-1])
    assert (counts["objects"], counts["removed"]) == (6, {})
    assert (tmp_path / "out/pairs-000000.tar").is_file()
    for wrong, words in (
        ("yolo:v3", "no detector 'yolo:v3'"),
        ("python:own_parts.nothing", "nothing to call at"),
        (f"objectron:{tmp_path}", "unpack the npm package there"),
    ):
        if "objectron" in wrong:
            monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
            words = r"pip install 'simpleseg-server\[annotate\]'"
        with pytest.raises(Failure, match=words):
            CliRunner().invoke(app, [*arguments, "--detector", wrong], catch_exceptions=False)


@dataclass(frozen=True)
class Broken:
    """An image whose reading fails."""

    error: OSError
    suffix: str = ".png"

    def read_bytes(self) -> bytes:
        raise self.error


def test_a_place_that_fails_ends_the_run_and_blames_no_picture(
    world: World, tmp_path: Path
) -> None:
    photos = _photos(tmp_path)
    for error in (FileNotFoundError(), PermissionError(), ConnectionResetError(), TimeoutError()):
        with pytest.raises(type(error)):
            annotate(_plan(tmp_path), [*photos, Picture("x", Broken(error))], world.parts())
    own = Picture("x", Broken(OSError(0, "no image in the row")))
    counts = annotate(_plan(tmp_path), [*photos, own], world.parts())
    assert (counts["images"], counts["unreadable_images"]) == (7, 1)
    assert world.calls["detect"] == 6


def test_a_sheet_of_many_pictures_shows_the_first(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contact_sheet, "_MOST", 4)
    annotate(_plan(tmp_path), _photos(tmp_path), world.parts())
    page = (tmp_path / "out" / SHEET).read_text()
    assert page.count("<figure>") == 4
    assert "The first 4 of 6." in page
