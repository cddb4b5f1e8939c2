"""The package without extras, installed into an environment of its own: light, and complete."""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest
from PIL import Image

from simpleseg_server.engines.scripted import ScriptedEngine

from .serving import TRIANGLE, serving

ROOT = Path(__file__).parents[2]
HEAVY = ["torch", "vllm", "transformers", "fastapi", "cv2", "supervision", "fiftyone"]

WITHOUT_SERVER = """
import importlib, json, pkgutil, sys
import numpy as np
from PIL import Image
import simpleseg
from simpleseg import MissingPackageError, Segmentation, overlay
from simpleseg.image_input import sent_image
from simpleseg_polygon.geometry import Box, ImageSize, Region

for module in pkgutil.walk_packages(simpleseg.__path__, "simpleseg."):
    importlib.import_module(module.name)

picture = Image.new("RGB", (80, 40))
region = Region((Box(0.25, 0.25, 0.75, 0.75).ring(),))
result = Segmentation("dog", "ok", region, region.bounding_box(), 0.5, ImageSize(40, 80),
                      open_image=picture.copy)
assert result.mask().sum() == 800
assert result.to_coco()["area"] == 800
assert result.to_labelme("a.png")["imagePath"] == "a.png"
assert result.to_label_studio() and result.to_geojson() and result.to_svg() and result.to_yolo()
overlay([result]).save("overlay.png")
with open("overlay.png", "rb") as file:
    content = file.read()
for image in ("overlay.png", picture, np.asarray(picture), content):
    assert sent_image(image).base64
for method in (result.to_supervision, result.to_fiftyone):
    try:
        method()
    except MissingPackageError as error:
        name = method.__name__.removeprefix("to_")
        assert f"pip install 'simpleseg-server[{name}]'" in str(error)
    else:
        raise AssertionError
print(json.dumps([name for name in HEAVY if name in sys.modules]))
"""

WITH_SERVER = """
import asyncio, json, sys
from simpleseg import AsyncSimpleSeg, SimpleSeg

with SimpleSeg() as client:
    kept = client.upload("overlay.png")
    assert client.segment(kept, "dog").status == "ok"
    with client.stream("overlay.png", "dog") as stream:
        assert len(list(stream)) > 3
    outcomes = list(client.segment_many(["overlay.png"] * 3, "dog", progress=True))
    assert [outcome.result.status for outcome in outcomes] == ["ok"] * 3
    assert client.models()

async def main():
    async with AsyncSimpleSeg() as client:
        assert (await client.segment("overlay.png", "dog")).polygons

asyncio.run(main())
print(json.dumps([name for name in HEAVY if name in sys.modules]))
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment's programs, with this package and what it needs."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python")]
    command = [*pip, "install", "--quiet", "--no-compile", str(ROOT)]
    installed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert installed.returncode == 0, installed.stderr
    return folder / "bin"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(ScriptedEngine([TRIANGLE])) as url:
        yield url


def _run(*command: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command where nothing of this checkout or of the user's is seen."""
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(str(command[0])).parent,
        env={"PATH": "/usr/bin:/bin", **environ},
        timeout=120,
    )


def _heavy_after(bare: Path, code: str, **environ: str) -> list[str]:
    run = _run(bare / "python", "-W", "error", "-c", f"HEAVY = {HEAVY}\n{code}", **environ)
    assert run.returncode == 0, run.stderr
    found: list[str] = json.loads(run.stdout.splitlines()[-1])
    return found


def test_nothing_heavy_is_installed(bare: Path) -> None:
    (site,) = bare.parent.glob("lib/python*/site-packages")
    names = {found.metadata["Name"].lower() for found in distributions(path=[str(site)])}
    assert "simpleseg-server" in names
    assert not names & {*HEAVY, "opencv-python", "opencv-python-headless", "uvicorn"}
    assert len(names) < 30


def test_what_needs_no_server_works_and_is_light(bare: Path) -> None:
    assert _heavy_after(bare, WITHOUT_SERVER) == []


def test_the_clients_work_and_are_light(bare: Path, url: str) -> None:
    Image.new("RGB", (80, 40)).save(bare / "overlay.png")
    assert _heavy_after(bare, WITH_SERVER, SIMPLESEG_BASE_URL=url) == []


def test_the_command_line_works_and_names_the_extra_that_is_missing(bare: Path, url: str) -> None:
    simpleseg, picture = bare / "simpleseg", bare / "picture.png"
    Image.new("RGB", (80, 40)).save(picture)
    assert "batch" in _run(simpleseg, "--help").stdout
    asked = _run(simpleseg, "segment", picture, "dog", "--url", url)
    assert asked.stdout.startswith("dog: ok"), asked.stderr
    (bare / "in").mkdir()
    picture.rename(bare / "in/picture.png")
    batch = _run(simpleseg, "batch", "in", "dog", "-o", "out.json", "--url", url)
    assert batch.returncode == 0, batch.stderr
    assert json.loads((bare / "out.json").read_text())["annotations"]
    for command in (
        ("segment", "in/picture.png", "dog"),
        ("batch", "in", "cat", "-o", "cat.jsonl"),
        ("serve",),
    ):
        refused = _run(simpleseg, *command)
        assert refused.returncode == 1
        assert "pip install 'simpleseg-server[server]'" in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1


def test_the_doctor_says_what_is_missing(bare: Path, url: str) -> None:
    run = _run(bare / "simpleseg", "doctor", "--json", "--url", url)
    told = json.loads(run.stdout)
    found = {check["name"]: check for check in told["checks"]}
    assert (run.returncode, told["can_serve"], run.stderr) == (1, False, "")
    problems = {name for name, check in found.items() if check["status"] == "problem"}
    assert problems == {"extras", "engine"}
    assert {"torch", "fastapi"} <= set(found["extras"]["facts"]["missing"]["server"])
    for name in problems:
        assert found[name]["fix"] == "pip install 'simpleseg-server[server]'"
    assert found["model"]["status"] == found["server"]["status"] == "ok"
