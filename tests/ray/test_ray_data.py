"""`simpleseg annotate` and `simpleseg batch` with `--ray`: killed workers change nothing."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from typer.testing import CliRunner

from simpleseg.cli import app
from simpleseg.spread import Work, spread

from ..server.processes import scripted_server

pytestmark = pytest.mark.ray

PARTS = """
import os, time
from pathlib import Path
import numpy as np
from simpleseg_polygon.geometry import Box
from simpleseg_training.annotate.parts import Detection

FOLDER = Path(__file__).parent


class Part:
    def detect(self, image):
        time.sleep(0.02)
        if tuple(image[0, 0]) == (255, 0, 0):
            os.kill(os.getpid(), 9)
        (FOLDER / f"worker-{os.getpid()}").touch()
        return [Detection("square", 0.9, Box(0.25, 0.25, 0.75, 0.75))]

    def segment(self, image, boxes):
        mask = np.zeros(image.shape[:2], bool)
        height, width = mask.shape
        mask[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = True
        return [mask for _ in boxes]


def detector(labels):
    return Part()
"""
IMAGES = 64


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    """Two CPUs, and no cluster of anybody else's."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=2**28)
    yield
    ray.shutdown()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(IMAGES):
        colour = (number, 255 - number, 90)
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"photos/{number:03d}.png")
    (tmp_path / "own_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def annotate(folder: Path, out: str, *options: str) -> dict[str, Any]:
    arguments = ["annotate", str(folder / "photos"), "-o", str(folder / out), "--labels", "square"]
    arguments += ["--detector", "python:own_parts.detector", "--segmenter", "python:own_parts.Part"]
    run = CliRunner().invoke(app, [*arguments, *options], catch_exceptions=False)
    counts: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return counts


def kill_one(folder: Path) -> threading.Thread:
    """Kills the first worker that has done something, once the run is on its way."""

    def wait_and_kill() -> None:
        while True:
            for path in folder.glob("worker-*"):
                pid = int(path.name.partition("-")[2])
                if pid != os.getpid() and psutil.pid_exists(pid):
                    os.kill(pid, signal.SIGKILL)
                    (folder / "killed").write_text(str(pid))
                    return
            time.sleep(0.005)

    thread = threading.Thread(target=wait_and_kill, daemon=True)
    thread.start()
    return thread


def test_a_killed_worker_changes_no_byte_of_the_pairs(folder: Path) -> None:
    annotate(folder, "whole")
    for path in folder.glob("worker-*"):
        path.unlink()
    killer = kill_one(folder)
    counts = annotate(folder, "spread", "--ray", "--workers", "2")
    killer.join(10)
    assert (folder / "killed").exists()
    assert counts["images"] == IMAGES
    for name in ("pairs.jsonl", "counts.json", "contact-sheet.html"):
        assert (folder / "spread" / name).read_bytes() == (folder / "whole" / name).read_bytes()
    lines = (folder / "spread/journal.jsonl").read_text().splitlines()
    assert len(lines) == 1 + IMAGES, "an image was done twice"


def test_a_picture_that_ends_its_workers_is_quarantined_alone(folder: Path) -> None:
    Image.new("RGB", (40, 40), (255, 0, 0)).save(folder / "photos/poison.png")
    (folder / "photos/broken.png").write_bytes(b"no picture")
    counts = annotate(folder, "out", "--ray", "--workers", "2")
    assert counts["quarantined_images"] == 1
    assert counts["unreadable_images"] == 1
    assert counts["objects"] == IMAGES
    again = annotate(folder, "out", "--ray", "--workers", "2")
    assert again == counts


def test_a_fault_of_the_work_ends_the_run() -> None:
    from simpleseg.spread import WorkerError

    def make() -> Work:
        def work(items: Sequence[Any]) -> list[Any]:
            raise ValueError("no such thing")

        return work

    with pytest.raises(WorkerError, match="ValueError: no such thing"):
        list(spread([1, 2], make, workers=1))


def test_a_batch_asks_a_server_from_several_processes(folder: Path, scripted_url: str) -> None:
    (folder / "photos/broken.png").write_bytes(b"no picture")
    arguments = ["batch", str(folder / "photos"), "the dog", "--url", scripted_url]
    alone, spread_out = folder / "alone.jsonl", folder / "spread.jsonl"
    for out, options in ((alone, []), (spread_out, ["--ray", "--workers", "2"])):
        run = CliRunner().invoke(
            app, [*arguments, "-o", str(out), *options], catch_exceptions=False
        )
        assert run.exit_code == 0, run.stderr
    assert results(alone) == results(spread_out)
    assert len(results(alone)) == IMAGES + 1
    size = spread_out.stat().st_size
    CliRunner().invoke(app, [*arguments, "-o", str(spread_out), "--ray"], catch_exceptions=False)
    assert spread_out.stat().st_size == size


def results(path: Path) -> dict[str, Any]:
    """By item, what does not depend on when it was asked."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = {line["custom_id"]: line["response"] for line in lines}
    assert len(found) == len(lines), "an item was answered twice"
    return {
        name: (said["status_code"], [one["polygons"] for one in said["body"].get("results", [])])
        for name, said in found.items()
    }


@pytest.fixture
def scripted_url(tmp_path: Path) -> Iterator[str]:
    with scripted_server(tmp_path / "log") as (_, urls):
        yield urls[0]
