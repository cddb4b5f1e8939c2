"""`simpleseg annotate` and `simpleseg batch` with `--ray`: killed workers change nothing."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from typer.testing import CliRunner

from simpleseg.batch.journal import is_error
from simpleseg.cli import app
from simpleseg.cli_support import Failure
from simpleseg.shards import Shards, cut
from simpleseg.spread import Work, WorkerError, spread

from ..server.processes import scripted_server, wait_for

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


def gpus(labels):
    (FOLDER / f"gpus-{os.environ.get('CUDA_VISIBLE_DEVICES')}").touch()
    return Part()
"""
IMAGES, SHARD = 64, 8
ON_RAY = ("--ray", "--workers", "2", "--shard-size", str(SHARD))


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[str]:
    """The address of two CPUs and two GPUs, which are no cluster of anybody else's."""
    import ray

    started = ray.init(
        address="local",
        num_cpus=2,
        num_gpus=2,  # which Ray believes: it hides and shows them by their numbers
        include_dashboard=False,
        object_store_memory=2**28,
    )
    yield started.address_info["gcs_address"]
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


def arguments(folder: Path, out: str, source: str = "photos") -> list[str]:
    place = ["annotate", str(folder / source), "-o", str(folder / out), "--labels", "square"]
    parts = ["--detector", "python:own_parts.detector", "--segmenter", "python:own_parts.Part"]
    return place + parts


def annotate(folder: Path, out: str, *options: str) -> dict[str, Any]:
    run = CliRunner().invoke(app, [*arguments(folder, out), *options], catch_exceptions=False)
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


def shards_of(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Each file's lines. Whatever begun file a killed process leaves is a failure, too."""
    return {
        path.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(out.iterdir())
    }


def assert_once_each(out: Path) -> None:
    shards = shards_of(out / "shards")
    assert [len(lines) for lines in shards.values()] == [SHARD] * (IMAGES // SHARD)
    names = [line["image"] for lines in shards.values() for line in lines]
    assert names == [f"{number:03d}.png" for number in range(IMAGES)]


def assert_same(folder: Path) -> None:
    for name in ("pairs.jsonl", "counts.json", "contact-sheet.html"):
        assert (folder / "spread" / name).read_bytes() == (folder / "whole" / name).read_bytes()


def test_annotate_worker_killed_changes_no_byte_of_the_pairs(folder: Path) -> None:
    annotate(folder, "whole")
    killer = kill_one(folder)
    counts = annotate(folder, "spread", *ON_RAY)
    killer.join(10)
    assert (folder / "killed").exists()
    assert counts["images"] == IMAGES
    assert_same(folder)
    assert_once_each(folder / "spread")


def test_annotate_command_killed_goes_on_with_the_shards_that_are_missing(
    folder: Path, cluster: str
) -> None:
    annotate(folder, "whole")
    shards = folder / "spread/shards"
    path = os.pathsep.join([str(folder), *sys.path])
    environ = os.environ | {"RAY_ADDRESS": cluster, "PYTHONPATH": path}
    command = [sys.executable, "-m", "simpleseg.cli", *arguments(folder, "spread"), *ON_RAY]
    process = subprocess.Popen(command, env=environ)
    wait_for(lambda: process.poll() is not None or any(shards.glob("part-*")))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in shards.glob("part-*")}
    assert 0 < len(done) < IMAGES // SHARD
    annotate(folder, "spread", *ON_RAY)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert_same(folder)
    assert_once_each(folder / "spread")


@pytest.fixture
def tars(folder: Path) -> Path:
    """The folder with the photographs in two tar files, too."""
    photos = sorted((folder / "photos").iterdir())
    for number, some in enumerate((photos[:40], photos[40:])):
        with tarfile.open(folder / f"x-{number}.tar", "w") as tar:
            for path in some:
                tar.add(path, path.name)
    return folder


def test_annotate_reads_tar_files_and_writes_to_a_url(tars: Path) -> None:
    annotate(tars, "whole", "--form", "tar")
    url, out = f"file://{tars}/spread", tars / "spread"
    command = [*arguments(tars, "spread", "x-*.tar"), "-o", url, *ON_RAY]
    out.mkdir()
    (out / "pairs-000009.tar").write_bytes(b"of a run with more pairs")
    (out / "pairs-old.tar").write_bytes(b"of somebody")
    for _ in range(2):
        run = CliRunner().invoke(app, command, catch_exceptions=False)
        assert json.loads(run.stdout.splitlines()[-1])["objects"] == IMAGES
        assert pairs(out) == pairs(tars / "whole") != []
        assert (out / "counts.json").read_bytes() == (tars / "whole/counts.json").read_bytes()
        assert {path.name for path in out.iterdir()} == {
            *(path.name for path in (tars / "whole").iterdir() if path.name != "journal.jsonl"),
            "shards",
            "pairs-old.tar",
        }
    names = [line["image"] for lines in shards_of(out / "shards").values() for line in lines]
    assert names == [f"x-{int(number > 39)}.tar/{number:03d}" for number in range(IMAGES)]


def pairs(out: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(out.glob("pairs-0*.tar"))]


def test_annotate_poison_picture_in_a_tar_file_is_quarantined_alone(tars: Path) -> None:
    Image.new("RGB", (40, 40), (255, 0, 0)).save(tars / "poison.png")
    with tarfile.open(tars / "x-2.tar", "w") as tar:
        tar.add(tars / "poison.png", "poison.png")
        tar.add(tars / "own_parts.py", "broken.png")
        tar.add(tars / "photos/000.png", "copy.png")
    command = [*arguments(tars, "out", "x-*.tar"), *ON_RAY]
    run = CliRunner().invoke(app, command, catch_exceptions=False)
    counts = json.loads(run.stdout.splitlines()[-1])
    assert (counts["quarantined_images"], counts["unreadable_images"]) == (1, 1)
    assert (counts["copied_images"], counts["objects"]) == (1, IMAGES)
    assert {"image": "x-2.tar/poison", "fault": "quarantined"} in [
        line for lines in shards_of(tars / "out/shards").values() for line in lines
    ]


@pytest.mark.parametrize(("gpus", "seen"), [(1, "0"), (2, "0,1"), (0.5, "0")])
def test_workers_see_the_gpus_that_they_ask_for(folder: Path, gpus: float, seen: str) -> None:
    options = ("--ray", "--workers", "1", "--worker-gpus", str(gpus))
    annotate(folder, "out", *options, "--detector", "python:own_parts.gpus")
    assert {path.name for path in folder.glob("gpus-*")} == {f"gpus-{seen}"}


@pytest.mark.parametrize(("gpus", "words"), [(3, "this machine has 2"), (1.5, "1.5")])
def test_gpus_that_no_worker_can_have_end_the_run(folder: Path, gpus: float, words: str) -> None:
    with pytest.raises(Failure, match=words):
        annotate(folder, "out", "--ray", "--worker-gpus", str(gpus))


def test_annotate_poison_picture_is_quarantined_alone(folder: Path) -> None:
    Image.new("RGB", (40, 40), (255, 0, 0)).save(folder / "photos/poison.png")
    (folder / "photos/broken.png").write_bytes(b"no picture")
    counts = annotate(folder, "out", *ON_RAY)
    assert counts["quarantined_images"] == 1
    assert counts["unreadable_images"] == 1
    assert counts["objects"] == IMAGES
    again = annotate(folder, "out", *ON_RAY)
    assert again == counts


def test_a_fault_of_the_work_ends_the_run(tmp_path: Path) -> None:
    def make() -> Work:
        def work(items: Sequence[Any]) -> list[Any]:
            raise ValueError("no such thing")

        return work

    blocks = cut([1, 2], str, 1)
    with pytest.raises(WorkerError, match="ValueError: no such thing"):
        list(spread(blocks, Shards(str(tmp_path)), make, lambda item: {}, workers=1))


def test_workers_that_die_of_everything_end_the_run_and_blame_no_record(tmp_path: Path) -> None:
    def make() -> Work:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    with pytest.raises(WorkerError, match="whatever they are given"):
        list(spread(cut([1, 2], str, 2), Shards(str(tmp_path)), make, lambda item: {}, workers=1))
    assert not list(tmp_path.iterdir())


def test_a_batch_asks_a_server_from_several_processes(folder: Path, scripted_url: str) -> None:
    (folder / "photos/broken.png").write_bytes(b"no picture")
    alone, shards, joined = folder / "alone.jsonl", folder / "answers", folder / "joined.jsonl"
    batch(folder, scripted_url, alone)
    said = batch(folder, scripted_url, shards, *ON_RAY)
    assert f"{IMAGES + 1} of {IMAGES + 1} items answered, 1 with an error" in said
    joined.write_bytes(b"".join(path.read_bytes() for path in sorted(shards.iterdir())))
    assert results(alone) == results(joined)
    assert len(results(alone)) == IMAGES + 1

    before = {path: path.stat().st_mtime_ns for path in shards.iterdir()}
    batch(folder, scripted_url, shards, *ON_RAY)
    assert {path: path.stat().st_mtime_ns for path in shards.iterdir()} == before
    size = joined.stat().st_size
    batch(folder, scripted_url, joined.with_suffix(".json"))
    assert joined.stat().st_size == size, "a run without Ray does not take the answers as its own"

    lines = [line for lines in shards_of(shards).values() for line in lines]
    kept = [line for line in lines if not is_error(line)]
    Image.new("RGB", (40, 40), (1, 2, 3)).save(folder / "photos/broken.png")
    said = batch(folder, scripted_url, shards, *ON_RAY, "--retry-errors")
    assert f"{IMAGES + 1} of {IMAGES + 1} items answered;" in said
    lines = [line for lines in shards_of(shards).values() for line in lines]
    assert len(lines) == IMAGES + 1
    assert all(line in lines for line in kept)


def test_what_a_server_refuses_ends_a_batch_and_is_asked_again(
    folder: Path, scripted_url: str
) -> None:
    command = ["batch", str(folder / "photos"), "the dog", "-o", str(folder / "answers"), *ON_RAY]
    run = CliRunner().invoke(app, [*command, "--url", "http://127.0.0.1:9"])
    assert run.exit_code == 1
    assert f"0 of {IMAGES} items answered; the same command goes on" in str(run.exception)
    assert not shards_of(folder / "answers")
    batch(folder, scripted_url, folder / "answers", *ON_RAY)
    assert sum(map(len, shards_of(folder / "answers").values())) == IMAGES


def batch(folder: Path, url: str, out: Path, *options: str) -> str:
    command = ["batch", str(folder / "photos"), "the dog", "--url", url, "-o", str(out), *options]
    run = CliRunner().invoke(app, command, catch_exceptions=False)
    assert run.exit_code == 0, run.stderr
    return run.stderr


def results(path: Path) -> dict[str, Any]:
    """By item, what does not depend on when it was asked."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = {line["custom_id"]: _said(line) for line in lines}
    assert len(found) == len(lines), "an item was answered twice"
    return found


def _said(line: dict[str, Any]) -> Any:
    body = line["response"]["body"]
    return body["error"]["code"] if is_error(line) else [one["polygons"] for one in body["results"]]


@pytest.fixture
def scripted_url(tmp_path: Path) -> Iterator[str]:
    with scripted_server(tmp_path / "log") as (_, urls):
        yield urls[0]
