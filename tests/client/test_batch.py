"""`simpleseg batch` as a process that is stopped and killed, against a real server."""

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pycocotools.coco import COCO

from simpleseg.batch.journal import Journal
from simpleseg_server.engines.base import GenerationRequest
from simpleseg_server.engines.scripted import Reply, ScriptedEngine

from .serving import serving, wait_until

COUNT = 24
CONCURRENCY = 3


def _reply(request: GenerationRequest) -> Reply:
    """A triangle whose place tells which thing was asked for."""
    x = round(0.02 * int(_thing(request)), 3)
    return Reply(f"[[[{x}, 0.1], [{x + 0.4:.3g}, 0.1], [0.5, 0.9]]]", delay_s=0.02)


def _thing(request: GenerationRequest) -> str:
    return request.instruction.split("thing ")[1][:2]


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(_reply)


@pytest.fixture
def url(engine: ScriptedEngine) -> Iterator[str]:
    with serving(engine) as url:
        yield url


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    """A JSONL file that asks for something else in each line."""
    Image.new("RGB", (80, 40)).save(tmp_path / "picture.png")
    lines = [{"image": "picture.png", "prompt": f"thing {i:02}"} for i in range(COUNT)]
    file = tmp_path / "requests.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def _start(*arguments: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "simpleseg.cli", "batch", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def _run(*arguments: Any) -> tuple[int, str]:
    process = _start(*arguments, "--concurrency", CONCURRENCY)
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors.strip()


def _lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read_text().splitlines()]


def _answers(output: Path) -> dict[str, Any]:
    """What was answered, without times and names of requests; every id once."""
    lines = _lines(output)
    found = {line["custom_id"]: line["response"]["body"]["results"] for line in lines}
    assert len(found) == len(lines)
    return found


def _interrupt(output: Path, url: str, requests: Path, number: int, answered: int) -> int:
    """Start a run, send it a signal when so many answers are there, and give its exit status."""
    process = _start(requests, "-o", output, "--url", url, "--concurrency", CONCURRENCY)
    answers = output.with_suffix(".jsonl")
    wait_until(lambda: answers.exists() and answers.read_bytes().count(b"\n") >= answered)
    process.send_signal(number)
    process.communicate(timeout=60)
    return process.returncode


def test_ctrl_c_loses_nothing_and_repeats_nothing(
    url: str, engine: ScriptedEngine, requests: Path, tmp_path: Path
) -> None:
    whole, halves = tmp_path / "whole.jsonl", tmp_path / "halves.jsonl"
    assert _run(requests, "-o", whole, "--url", url)[0] == 0
    engine.requests.clear()
    assert _interrupt(halves, url, requests, signal.SIGINT, 5) == 130
    assert 5 <= len(_answers(halves)) < COUNT
    assert len(engine.requests) == len(_answers(halves))
    status, errors = _run(requests, "-o", halves, "--url", url)
    assert (status, errors) == (0, f"{COUNT} of {COUNT} items answered; wrote {halves}")
    assert _answers(halves) == _answers(whole)
    assert len(_answers(halves)) == COUNT
    assert set(Counter(map(_thing, engine.requests)).values()) == {1}


def test_a_killed_run_goes_on_to_the_same_data_set(
    url: str, engine: ScriptedEngine, requests: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    assert _run(requests, "-o", whole, "--url", url)[0] == 0
    engine.requests.clear()
    for answered in (4, 11):
        assert _interrupt(parts, url, requests, signal.SIGKILL, answered) == -signal.SIGKILL
        recorded = {
            line["response"]["body"]["results"][0]["prompt"][-2:]
            for line in _lines(parts.with_suffix(".jsonl"))
        }
        assert len(recorded) >= answered
        assert not parts.exists()
        seen = Counter(map(_thing, engine.requests))
    assert _run(requests, "-o", parts, "--url", url)[0] == 0
    assert parts.read_bytes() == whole.read_bytes()
    assert _answers(parts.with_suffix(".jsonl")) == _answers(whole.with_suffix(".jsonl"))
    # Only what was under way when it was killed was asked again; what was recorded was not.
    after = Counter(map(_thing, engine.requests))
    assert all(after[thing] == seen[thing] for thing in recorded)
    assert set(after) == {f"{i:02}" for i in range(COUNT)}
    assert sum(after.values()) <= COUNT + 2 * CONCURRENCY


def test_a_folder_becomes_a_coco_data_set(url: str, tmp_path: Path) -> None:
    for name in ("b.png", "a/one.jpg", ".hidden.png", "notes.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 40)).save(tmp_path / "in" / name, format="PNG")
    output = tmp_path / "out.json"
    assert _run(tmp_path / "in", "thing 03", "thing 07", "-o", output, "--url", url)[0] == 0
    coco = COCO(str(output))
    assert [image["file_name"] for image in coco.dataset["images"]] == ["a/one.jpg", "b.png"]
    assert [c["name"] for c in coco.dataset["categories"]] == ["thing 03", "thing 07"]
    assert [a["image_id"] for a in coco.dataset["annotations"]] == [1, 1, 2, 2]
    assert coco.dataset["annotations"][0]["bbox"] == [4.8, 4.0, 35.2, 32.0]
    assert coco.dataset["annotations"][0]["area"] == pytest.approx(0.16 * 3200, abs=40)


def test_an_error_is_recorded_and_asked_again_only_on_demand(
    url: str, engine: ScriptedEngine, tmp_path: Path
) -> None:
    Image.new("RGB", (80, 40)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no picture")
    requests, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    body = {"image": {"path": "gone.png"}, "prompt": "thing 02", "coordinates": "pixel"}
    lines = [
        {"custom_id": "good", "image": "good.png", "prompt": "thing 00"},
        {"custom_id": "bad", "image": "bad.png", "prompt": "thing 01"},
        {"custom_id": "gone", "method": "POST", "url": "/v1/segment", "body": body},
    ]
    requests.write_text("\n".join(map(json.dumps, lines)))
    command = (requests, "-o", output, "--url", url)
    assert _run(*command)[0] == 0
    found = {line["custom_id"]: line for line in _lines(output)}
    assert found["good"]["response"]["status_code"] == 200
    assert found["bad"]["response"]["status_code"] == 415
    assert found["bad"]["response"]["body"]["error"]["code"] == "image_type_unsupported"
    assert found["gone"]["response"] is None
    assert found["gone"]["error"]["code"] == "image_unreadable"
    for name in ("bad.png", "gone.png"):
        Image.new("RGB", (80, 40)).save(tmp_path / name)
    before = output.read_bytes()
    status, errors = _run(*command)
    assert status == 0
    assert "2 with an error (--retry-errors asks again)" in errors
    assert output.read_bytes() == before
    assert _run(*command, "--retry-errors")[0] == 0
    assert len(_answers(output)) == 3
    assert len(engine.requests) == 3


def test_a_server_that_goes_away_ends_the_run_in_one_line(requests: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    engine = ScriptedEngine(_reply)
    with serving(engine) as url:
        process = _start(requests, "-o", output, "--url", url, "--concurrency", CONCURRENCY)
        wait_until(lambda: output.exists() and output.read_bytes().count(b"\n") >= 5)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"simpleseg: no server answers at {url}: " in errors
    assert len(errors.strip().splitlines()) == 1
    done = len(_lines(output))
    assert 5 <= done < COUNT
    with serving(ScriptedEngine(_reply)) as url:
        assert _run(requests, "-o", output, "--url", url)[0] == 0
    assert len(_answers(output)) == COUNT


def test_an_engine_that_dies_ends_the_run_and_costs_no_item(requests: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    engine = ScriptedEngine(_reply)
    with serving(engine, retry_after_s=0.1) as url:
        process = _start(requests, "-o", output, "--url", url, "--concurrency", CONCURRENCY)
        wait_until(lambda: output.exists() and output.read_bytes().count(b"\n") >= 5)
        engine.die()
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.startswith("simpleseg: 503 engine_unavailable")
    assert len(_answers(output)) < COUNT


def test_a_second_ctrl_c_drops_what_is_under_way(requests: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    engine = ScriptedEngine([Reply("[]", fault="hang")])
    with serving(engine) as url:
        process = _start(requests, "-o", output, "--url", url, "--concurrency", CONCURRENCY)
        wait_until(lambda: engine.running == CONCURRENCY)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "Ctrl-C again drops them" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        wait_until(lambda: engine.running == 0)
    assert process.returncode == 130
    assert errors == (
        f"simpleseg: stopped: 0 of {COUNT} items answered; the same command goes on\n"
    )
    assert output.read_bytes() == b""


def test_a_full_disk_is_one_line_and_leaves_whole_lines(
    url: str, requests: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    arguments = ["simpleseg", "batch", str(requests), "-o", str(output), "--url", url]
    code = (
        "import resource, sys; from simpleseg.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        f"sys.argv = {arguments!r}; main()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (1, f"simpleseg: {output}: File too large\n")
    assert 0 < len(_answers(output)) < COUNT
    assert _run(requests, "-o", output, "--url", url)[0] == 0
    assert len(_answers(output)) == COUNT


def test_a_refused_key_ends_the_run(requests: Path, tmp_path: Path) -> None:
    with serving(ScriptedEngine(_reply), api_keys="secret") as url:
        status, errors = _run(requests, "-o", tmp_path / "out.jsonl", "--url", url)
    assert status == 1
    assert errors.startswith("simpleseg: 401")
    assert (tmp_path / "out.jsonl").read_bytes() == b""


def test_another_question_under_the_same_name_is_refused(
    url: str, requests: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    line = {"custom_id": "a", "image": "picture.png", "prompt": "thing 01"}
    requests.write_text(json.dumps(line))
    assert _run(requests, "-o", output, "--url", url)[0] == 0
    requests.write_text(json.dumps({**line, "prompt": "thing 02"}))
    status, errors = _run(requests, "-o", output, "--url", url)
    assert status == 1
    assert "answers another request as 'a': name another output" in errors


def test_two_runs_do_not_share_an_output(url: str, requests: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with Journal(output):
        status, errors = _run(requests, "-o", output, "--url", url)
    assert status == 1
    assert errors == f"simpleseg: {output}: another run writes to it"


@pytest.mark.slow
def test_the_shipped_model_answers_a_folder_in_this_process(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    images = Path(__file__).parents[2] / "examples/images"
    assert _run(images, "the circle", "--max-points", 8, "-o", output)[0] == 0
    assert len(_answers(output)) == len(list(images.glob("*.png")))
