"""The example scripts, run against a real server with the shipped model."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path for path in EXAMPLES.glob("*.py") if path.read_text().startswith("# %%"))


def _run(name: str, folder: Path, url: str) -> str:
    run = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)],
        cwd=folder,
        env=os.environ | {"SIMPLESEG_BASE_URL": url},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_all_of_them_are_tested_here() -> None:
    text = Path(__file__).read_text()
    assert len(SCRIPTS) >= 3
    assert all(f'_run("{path.name}"' in text for path in SCRIPTS)


def test_a_folder_becomes_a_data_set_that_coco_reads(demo_url: str, tmp_path: Path) -> None:
    printed = _run("annotate_folder.py", tmp_path, demo_url)
    dataset = COCO(str(tmp_path / "annotations.json"))
    assert len(dataset.getImgIds()) == len(list((EXAMPLES / "images").glob("*.png")))
    assert f"{len(dataset.getAnnIds())} annotations" in printed
    masks = [dataset.annToMask(one) for one in dataset.loadAnns(dataset.getAnnIds())]
    assert masks
    assert all(mask.any() for mask in masks)


def test_the_centre_of_an_object_is_found_in_space(demo_url: str, tmp_path: Path) -> None:
    printed = _run("robot_grasp.py", tmp_path, demo_url)
    found = re.search(r"off by (\d+) mm", printed)
    assert found is not None
    assert int(found[1]) < 40  # of an object 300 mm wide, 1 m away


def test_an_edited_answer_goes_to_other_tools(demo_url: str, tmp_path: Path) -> None:
    printed = _run("edit_interactively.py", tmp_path, demo_url)
    assert printed.count("draw [[") >= 2
    changed = re.search(r"changed (\d+) pixels", printed)
    assert changed is not None
    assert int(changed[1]) > 0
    labelme: dict[str, Any] = json.loads((tmp_path / "scene-04.json").read_text())
    assert labelme["shapes"][0]["label"] == "the hexagon"
    assert json.loads((tmp_path / "scene-04.coco.json").read_text())["area"] > 0
    assert (tmp_path / "scene-04.svg").read_text().startswith("<svg")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_cells_tell_what_they_do(path: Path) -> None:
    cells = path.read_text().split("# %%")[1:]
    assert cells[0].startswith(" [markdown]\n# # ")
    assert sum(cell.startswith(" [markdown]") for cell in cells) >= 3
