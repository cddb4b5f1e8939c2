"""`simpleseg bench` as a command, on the shipped model and on a script."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image
from typer.testing import CliRunner

from simpleseg.bench.load import Load, run_load
from simpleseg.bench.questions import load_questions
from simpleseg.bench.wire import Target
from simpleseg.cli import app
from simpleseg.cli_support import Failure
from simpleseg_server.engines.scripted import Reply

for package in ("aiohttp", "hdrh", "matplotlib"):
    pytest.importorskip(package)

ROOT = Path(__file__).parents[2]


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *arguments])


@pytest.fixture
def url(serve_on_socket: Any, engine: Any) -> Any:
    engine.default = Reply("[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]].")
    with serve_on_socket(engine) as url:
        yield url


def test_everything_is_told_and_written(url: str, tmp_path: Path) -> None:
    stem = tmp_path / "out" / "load"
    options = ("--data", "packaged", "--size", "64x64", "--slo-ms", "60000", "--note", "busy")
    loads = ("--concurrency", "1,2", "--requests", "3", "--warmup", "0")
    run = invoke("--url", url, *options, *loads, "--output", str(stem), "--json")
    assert run.exit_code == 0, run.output
    told = json.loads(run.stdout.splitlines()[-1])
    assert told == json.loads(stem.with_suffix(".json").read_text())
    assert [(one["mode"], one["level"], one["good"]) for one in told["runs"]] == [
        ("closed", 1, 3),
        ("closed", 2, 3),
    ]
    assert told["note"] == "busy"
    assert told["server"]["model"] == "scripted-model"
    assert told["server"]["engine"] == "scripted"
    assert {"cpu", "cores", "load_1min", "python"} <= told["hardware"].keys()
    assert told["input"]["data"] == "packaged"
    assert told["command"]
    table = stem.with_suffix(".md").read_text()
    assert "| closed x2 | 3/3/3 |" in table
    assert told["command"] in table
    assert "closed x1" in run.stdout
    with Image.open(stem.with_suffix(".png")) as picture:
        assert picture.width > 1000


def test_a_ramp_tells_its_capacity(url: str) -> None:
    loads = ("--rate", "4", "--ramp", "--slo-ms", "60000", "--arrivals", "constant")
    run = invoke("--url", url, "--data", "packaged", *loads, "--requests", "2", "--json")
    assert run.exit_code == 0, run.output
    told = json.loads(run.stdout.splitlines()[-1])
    assert told["capacity"]["rate"] in [one["level"] for one in told["runs"]]
    assert len(told["runs"]) > 1
    assert "Best sustained goodput" in run.stdout


def test_a_load_without_one_right_answer_fails(url: str, engine: Any) -> None:
    engine.default = Reply("well")
    loads = ("--concurrency", "1", "--requests", "2", "--warmup", "0")
    run = invoke("--url", url, "--data", "packaged", *loads)
    assert isinstance(run.exception, Failure)
    assert "2 status invalid" in run.stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--ramp", "--rate", "1"), "--slo-ms"),
        (("--rate", "1", "--concurrency", "1"), "not both"),
        (("--rate", "fast"), "fast"),
        (("--concurrency", "0.5"), "no rate or concurrency"),
        (("--size", "640"), "640x480"),
        (("--field", "max_points"), "max_points=24"),
        (("--data", "demo-none"), "demo-none"),
        (("--data", "examples/images/none.jsonl"), "no data named"),
    ],
)
def test_what_makes_no_load_is_refused_in_a_line(options: tuple[str, ...], told: str) -> None:
    run = invoke("--url", "http://127.0.0.1:9", *options)
    assert isinstance(run.exception, Failure)
    assert run.exception.status == 2
    assert told in str(run.exception)


def test_nobody_there_is_told() -> None:
    run = invoke("--url", "http://127.0.0.1:9", "--data", "packaged")
    assert str(run.exception) == "no server answers at http://127.0.0.1:9"


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hdrh", None)
    monkeypatch.delitem(sys.modules, "hdrh.histogram", raising=False)
    run = invoke("--url", "http://127.0.0.1:9", "--data", "packaged")
    assert "pip install 'simpleseg-server[bench]'" in str(run.exception)


def test_the_shipped_model_bears_a_load(demo_url: str) -> None:
    questions = load_questions("packaged", limit=3)
    load = Load("closed", 3, requests=9, warmup_s=0)
    for target in (Target(demo_url, stream=True), Target(demo_url, "chat", model="simpleseg-demo")):
        result = run_load(target, questions, load)
        assert sum(sample.is_right for sample in result.samples) == 9, result.flaws
        assert result.golden_compared == 6
        assert result.mean_truth_iou is not None
        assert result.mean_truth_iou > 0.3


def test_it_starts_a_server_of_its_own() -> None:
    command = [sys.executable, "benchmarks/load.py", "--data", "packaged", "--requests", "2"]
    run = subprocess.run(
        [*command, "--quick", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout.splitlines()[-1])
    assert told["server"]["model"] == "simpleseg-demo"
    assert told["runs"][0]["right"] == 2


def test_its_server_ends_with_it() -> None:
    code = (
        "import os, signal, sys\n"
        "from simpleseg.bench.servers import own_server\n"
        "with own_server(['--engine', 'embedded']) as url:\n"
        "    print(url, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    signal.pause()\n"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 128 + signal.SIGTERM
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(run.stdout.strip())
