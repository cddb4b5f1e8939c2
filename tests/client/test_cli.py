"""The command line against a server on a real socket, and its one-line failures."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from simpleseg import __version__
from simpleseg.cli import app
from simpleseg.cli_measure import answer_text
from simpleseg.schema import Result, Status
from simpleseg_polygon.codec import parse_boxes, parse_region
from simpleseg_polygon.confidence import Calibration
from simpleseg_server.engines.base import GenerationRequest
from simpleseg_server.engines.scripted import ScriptedEngine

from .serving import TRIANGLE, serving

PICTURE = str(Path(__file__).parents[2] / "examples" / "images" / "scene-04.png")
BOX = "[0.25, 0.25, 0.75, 0.75]"


def _script(request: GenerationRequest) -> str:
    if "ghost" in request.instruction:
        return "[]"
    return BOX if request.target == "box" else TRIANGLE


@pytest.fixture
def url() -> Iterator[str]:
    with serving(ScriptedEngine(_script)) as url:
        yield url


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "picture.png"
    Image.new("RGB", (80, 40), (128, 128, 128)).save(path)
    return str(path)


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "simpleseg.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_segment_writes_the_overlay_and_prints_a_line(
    url: str, picture: str, tmp_path: Path
) -> None:
    overlay = tmp_path / "overlay.png"
    arguments = ["segment", picture, "the kite", "a ghost", "-o", str(overlay), "--url", url]
    run = CliRunner().invoke(app, arguments, catch_exceptions=False)
    kite, ghost = run.stdout.splitlines()
    assert kite.startswith("the kite: ok, score 0.9")
    assert "3 points" in kite
    assert ghost.startswith("a ghost: empty, ")
    with Image.open(overlay) as drawn:
        assert drawn.size == (1040, 520)
        assert drawn.getpixel((520, 200)) != (128, 128, 128)


def test_segment_prints_json(url: str, picture: str) -> None:
    arguments = ["segment", picture, "the kite", "--json", "--url", url]
    run = CliRunner().invoke(app, arguments, catch_exceptions=False)
    result = json.loads(run.stdout)
    assert (result["prompt"], result["status"], result["points"]) == ("the kite", "ok", 3)
    assert result["bbox"] == [0.25, 0.25, 0.75, 0.75]
    assert result["polygons"] == [[[0.25, 0.25], [0.75, 0.25], [0.5, 0.75]]]
    assert result["image"] == {"width": 80, "height": 40}


def test_eval_prints_one_object_last(url: str) -> None:
    arguments = ["eval", "--data", "demo-single", "--limit", "3", "--url", url, "--json"]
    run = CliRunner().invoke(app, arguments, catch_exceptions=False)
    metrics = json.loads(run.stdout.splitlines()[-1])
    assert metrics["n"] == 3
    assert metrics["data"] == "demo-single"
    assert 0 <= metrics["giou"] <= 1
    assert metrics["tokens_per_answer"] == -(-len(TRIANGLE) // 4) + 1  # and the end token


def test_calibrate_measures_and_writes_into_the_checkpoint(url: str, tmp_path: Path) -> None:
    (tmp_path / "simpleseg.json").write_text('{"name": "birds"}')
    arguments = ["calibrate", "--data", "demo-single,demo-multi", "--limit", "4", "--url", url]
    arguments += ["--write", str(tmp_path), "--diagram", str(tmp_path / "diagram.png")]
    run = CliRunner().invoke(app, arguments, catch_exceptions=False)
    measured = json.loads(run.stdout.splitlines()[-1])
    assert measured["region"]["n"] == 4  # half of the answers; the others are fitted to
    assert 0 <= measured["region"]["error"] <= 1
    profile = json.loads((tmp_path / "simpleseg.json").read_text())
    assert profile["name"] == "birds"
    assert Calibration.from_dict(profile["calibration"]["region"])
    assert (tmp_path / "diagram.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_shipped_model_is_run_and_measured_in_this_process(
    picture: str, tmp_path: Path
) -> None:
    overlay = tmp_path / "overlay.png"
    drawn = _command("segment", picture, "the circle", "--max-points", "8", "-o", str(overlay))
    assert drawn.returncode == 0, drawn.stderr
    assert overlay.exists()
    measured = _command("eval", "--data", "demo-single", "--limit", "2", "--json")
    assert json.loads(measured.stdout.splitlines()[-1])["n"] == 2


def test_version() -> None:
    run = CliRunner().invoke(app, ["--version"])
    assert run.stdout == f"simpleseg {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["segment", "nowhere.png", "a dog", "--url", "http://127.0.0.1:9"],
            "nowhere.png: No such",
        ),
        (["segment", PICTURE, "a dog", "--url", "http://127.0.0.1:9"], "no server answers at"),
        (["segment", PICTURE, "a dog", "--url", "localhost"], "must start with http"),
        (
            ["batch", ".", "a dog", "-o", "/nowhere/x.jsonl", "--url", "http://127.0.0.1:9"],
            "/nowhere/x.jsonl: No such",
        ),
        (["serve", "--model", "./nowhere"], "./nowhere is not a checkpoint folder"),
        (["eval", "--data", "coco", "--url", "http://127.0.0.1:9"], "no data named 'coco'"),
        (
            ["train", "sft", "nowhere", "--out", "/nowhere"],
            "no configuration 'nowhere': a file, or",
        ),
        (
            ["train", "rl", "demo-rl", "--out", "/nowhere", "--set", "rewards.beauty=1"],
            "demo-rl: rewards.beauty: unknown key",
        ),
    ],
)
def test_failures_are_one_line(arguments: list[str], words: str) -> None:
    run = _command(*arguments)
    assert run.returncode == 1
    assert run.stdout == ""
    line = run.stderr.strip()
    assert line.startswith("simpleseg: ")
    assert "\n" not in line
    assert words in line


def test_an_error_of_the_server_is_one_line(url: str) -> None:
    run = _command("segment", PICTURE, "a dog" * 4096, "--url", url)
    assert run.returncode == 1
    assert run.stderr.startswith("simpleseg: 4")
    assert len(run.stderr.strip().splitlines()) == 1


def test_an_unknown_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMPLESEG_MAX_PROMTS", "3")
    run = _command("serve")
    assert run.returncode == 2
    assert "unknown setting: max_promts" in run.stderr


def test_a_missing_extra_is_named() -> None:
    code = "import sys; sys.modules['uvicorn'] = None; sys.argv = ['simpleseg', 'serve']\n"
    code += "from simpleseg.cli import main; main()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "pip install 'simpleseg-server[server]'" in run.stderr


def test_the_shell_completes_commands_and_options() -> None:
    for line, words in (
        ("simpleseg ", {"serve", "segment", "batch"}),
        ("simpleseg batch --", {"--url"}),
    ):
        environ = os.environ | {
            "_SIMPLESEG_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1),
        }
        code = "import sys; sys.argv = ['simpleseg']; from simpleseg.cli import main; main()"
        command = [sys.executable, "-c", code]
        run = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
        assert words <= set(run.stdout.split()), run.stderr


def _result(status: Status, **outputs: Any) -> Result:
    return Result(index=0, status=status, finish_reason="stop", **outputs)


def test_an_answer_is_evaluated_as_the_server_understood_it() -> None:
    found = _result("ok", polygons=[[[0.25, 0.25], [0.75, 0.25], [0.5, 0.75]]])
    assert answer_text(found) == TRIANGLE
    for status in ("empty", "invalid"):
        assert parse_region(answer_text(_result(status, polygons=[]))).status == status
    boxes = [[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]]
    for some in (boxes[:1], boxes):
        text = answer_text(_result("ok", boxes=some))
        assert [list(box) for box in parse_boxes(text).value] == some
