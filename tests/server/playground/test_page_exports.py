"""What leaves the page: files of other tools, and requests as code that really runs."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely.geometry
from PIL import Image
from pycocotools.coco import COCO

from simpleseg_server.engines.scripted import Reply

from .conftest import ROOT

pytestmark = pytest.mark.browser
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

SQUARE = "[[[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]]]."
TWO = "[[[0.1, 0.8], [0.2, 0.8], [0.2, 0.9]], [[0.5, 0.8], [0.6, 0.8], [0.6, 0.9]]]."
MOVED_PX = (112, 128)
"""Where a test moves the square's first vertex to, in the 512 x 512 picture."""


@pytest.fixture(scope="module")
def files(browser: Any) -> dict[str, tuple[str, bytes]]:
    """Filled by the first test that asks for it."""
    return {}


@pytest.fixture
def exported(
    visit: Any, engine: Any, serve_on_socket: Any, files: dict[str, tuple[str, bytes]]
) -> dict[str, tuple[str, bytes]]:
    """Each format's file name and bytes, for a square that was corrected by hand, one object in two
    parts, and one that is hidden."""
    if files:
        return files
    engine.replies = {"two": Reply(TWO), "square": Reply(SQUARE)}
    with serve_on_socket(engine) as url, visit(url) as here:
        here.open_sample(2)
        here.ask("the square; the two; the square; hidden thing")
        here.settle()
        here.page.locator(".object-head").nth(3).click()
        here.page.locator(".object.selected [data-action=hide]").click()
        here.page.locator(".object-head").first.click()
        handle = here.page.locator(".handle").first
        handle.focus()
        for _ in range(16):
            handle.press("ArrowLeft")
        for name in ("png", "svg", "coco", "labelme", "label_studio", "yolo", "geojson", "mask"):
            files[name] = here.download(here.page.locator(f"[data-format={name}]").click)
    return files


def test_the_names_of_the_files(exported: dict[str, tuple[str, bytes]]) -> None:
    assert {name: file for name, (file, _) in exported.items()} == {
        "png": "scene-04.overlay.png",
        "svg": "scene-04.svg",
        "coco": "scene-04.coco.json",
        "labelme": "scene-04.json",
        "label_studio": "scene-04.label-studio.json",
        "yolo": "scene-04.txt",
        "geojson": "scene-04.geojson",
        "mask": "scene-04.mask.png",
    }


def test_the_png_has_the_outlines_on_the_picture(exported: dict[str, tuple[str, bytes]]) -> None:
    painted = np.asarray(Image.open(io.BytesIO(exported["png"][1])).convert("RGB")).astype(int)
    bare = np.asarray(Image.open(ROOT / "examples/images/scene-04.png").convert("RGB")).astype(int)
    assert painted.shape == bare.shape == (512, 512, 3)
    changed = np.abs(painted - bare).sum(axis=2) > 30
    assert changed[256, 256]
    assert changed[130, 120]  # inside because of the correction only
    assert not changed[20, 20]


def test_the_svg_has_a_titled_path_for_each_object(exported: dict[str, tuple[str, bytes]]) -> None:
    root = ElementTree.fromstring(exported["svg"][1])
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg"
    assert root.attrib["viewBox"] == "0 0 512 512"
    paths = root.findall(f"{space}path")
    titles = [path.findtext(f"{space}title") for path in paths]
    assert titles == ["the square", "the two", "the square"]
    assert paths[0].attrib["d"].startswith("M112 128L384 128")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # its own
def test_coco_loads_in_pycocotools(exported: dict[str, tuple[str, bytes]], tmp_path: Path) -> None:
    file = tmp_path / "coco.json"
    file.write_bytes(exported["coco"][1])
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(file))
    annotations = coco.loadAnns(coco.getAnnIds())
    assert [coco.cats[a["category_id"]]["name"] for a in annotations] == [
        "the square",
        "the two",
        "the square",
    ]
    first = annotations[0]
    assert first["segmentation"][0][:2] == list(MOVED_PX)
    assert coco.annToMask(first).sum() == pytest.approx(first["area"], rel=0.01)
    assert first["area"] > annotations[2]["area"] == 256 * 256
    assert coco.imgs[1]["file_name"] == "scene-04.png"


def test_labelme_has_the_shape_of_its_files(exported: dict[str, tuple[str, bytes]]) -> None:
    document = json.loads(exported["labelme"][1])
    assert document["version"].startswith("5.")
    assert document.keys() >= {"flags", "shapes", "imagePath", "imageData"}
    assert (document["imageHeight"], document["imageWidth"]) == (512, 512)
    assert document["imagePath"] == "scene-04.png"
    shapes = document["shapes"]
    assert [shape["label"] for shape in shapes] == ["the square", *["the two"] * 2, "the square"]
    assert {shape["shape_type"] for shape in shapes} == {"polygon"}
    assert shapes[0]["points"][0] == list(MOVED_PX)
    assert shapes[1]["group_id"] == shapes[2]["group_id"] == 2


def test_label_studio_has_a_task_in_percent(exported: dict[str, tuple[str, bytes]]) -> None:
    (task,) = json.loads(exported["label_studio"][1])
    results = task["predictions"][0]["result"]
    assert task["data"] == {"image": "scene-04.png"}
    assert len({result["id"] for result in results}) == len(results) == 4
    assert results[0]["value"]["points"][0] == [21.875, 25.0]
    assert results[0]["value"]["polygonlabels"] == ["the square"]


def test_yolo_and_geojson(exported: dict[str, tuple[str, bytes]]) -> None:
    lines = exported["yolo"][1].decode().splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "0"]
    assert lines[0].split()[1:3] == ["0.21875", "0.25"]
    collection = json.loads(exported["geojson"][1])
    shapes = [shapely.geometry.shape(one["geometry"]) for one in collection["features"]]
    assert all(shape.is_valid for shape in shapes)
    assert shapes[0].bounds == (112, 128, 384, 384)
    assert [one["properties"]["label"] for one in collection["features"]][1] == "the two"


def test_the_mask_numbers_the_objects(exported: dict[str, tuple[str, bytes]]) -> None:
    mask = np.asarray(Image.open(io.BytesIO(exported["mask"][1])))
    assert mask.shape == (512, 512)
    assert set(np.unique(mask)) == {0, 1, 2, 3}  # the last square lies over most of the first
    assert mask[130, 120] == 1


NASTY = """it's "a" $(touch pwned) `id` \\ ü 猫 <b>"""
NAME = """na'me "x";type=a$(id).png"""


@pytest.fixture
def snippets(visit: Any, engine: Any, serve_on_socket: Any) -> Iterator[dict[str, str]]:
    """The request in every language, while the server that answers it is there."""
    engine.default = Reply(SQUARE)
    with serve_on_socket(engine, api_keys="secret-4711") as url:
        with visit(url, ready=False) as here:
            here.page.click("#key-button")
            here.page.fill("#key-input", "secret-4711")
            here.page.press("#key-input", "Enter")
            data = (ROOT / "examples/images/scene-04.png").read_bytes()
            file = {"name": NAME, "mimeType": "image/png", "buffer": data}
            here.page.set_input_files("#file", file)
            here.page.get_by_label("Look twice").check()
            here.ask(NASTY)
            here.settle()
            here.page.get_by_label("Point", exact=True).check()
            here.page.click("#tab-code")
            codes = {}
            for language in ("curl", "Python", "JavaScript"):
                here.page.get_by_label(language, exact=True).check()
                codes[language] = here.page.locator("pre.code").inner_text()
                assert "4711" not in codes[language]
        yield codes


def _run(command: list[str], folder: Path) -> str:
    (folder / NAME).write_bytes((ROOT / "examples/images/scene-04.png").read_bytes())
    environ = os.environ | {
        "SIMPLESEG_API_KEY": "secret-4711",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    run = subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    assert {path.name for path in folder.iterdir()} == {NAME}
    return run.stdout


def test_the_code_runs(snippets: dict[str, str], engine: Any, tmp_path: Path) -> None:
    """The server is asked the same by each, whatever the phrase and the file's name hold."""
    (asked,) = {request.instruction for request in engine.requests}
    assert NASTY in asked
    languages = {"curl": ["sh", "-c"], "Python": [sys.executable, "-c"]}
    node = shutil.which("node")
    if node is not None:
        languages["JavaScript"] = [node, "--input-type=module", "-e"]
    for language, command in languages.items():
        if shutil.which(language) is None and language == "curl":
            continue
        engine.requests.clear()
        said = _run([*command, snippets[language]], tmp_path)
        assert "ok" in said, language
        assert {request.instruction for request in engine.requests} == {asked}, language
