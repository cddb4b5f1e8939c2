"""Whole servers with the real vLLM: ours, and vLLM's own with our plugin."""

import base64
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from simpleseg.schema import ImageInput

from .support import assert_begins, cut_midway

pytestmark = pytest.mark.vllm

START_S = 500
STOP_S = 60
ANSWER_S = 120
LONG: dict[str, Any] = {"max_tokens": 1500}
"""An answer that takes a model with random weights seconds."""


@dataclass(frozen=True)
class Server:
    """A server process and a client of it; ``ready_s`` is what its start took."""

    process: subprocess.Popen[bytes]
    http: httpx2.Client
    ready_s: float

    def segment(self, **fields: Any) -> httpx2.Response:
        return self.http.post("/segment", json={"image": PICTURES[0], "prompt": "cat"} | fields)

    def samples(self) -> dict[str, float]:
        """A scrape: series by name, summed over their labels."""
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(self.http.get("/metrics").text):
            for sample in family.samples:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
        return found

    def descendants(self, name: str) -> list[psutil.Process]:
        """The server's processes whose command line holds ``name``."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in found if name in " ".join(process.cmdline())]


def _picture(seed: int) -> str:
    pixels = np.random.default_rng(seed).integers(0, 256, (90, 140, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


PICTURES = [_picture(seed) for seed in range(8)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _running(
    command: Sequence[str], ready: str, log: Path, environment: Mapping[str, str]
) -> Iterator[Server]:
    """A server until it is ready; it must end by itself when it is asked to."""
    port = _free_port()
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
        )
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=ANSWER_S) as http:
                _wait_until(lambda: process.poll() is not None or _answers(http, ready), START_S)
                assert process.poll() is None, log.read_text()[-4000:]
                yield Server(process, http, time.monotonic() - began)
        finally:
            descendants = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
                assert psutil.wait_procs(descendants, STOP_S)[1] == []  # they end with it
            finally:
                process.kill()


def _answers(http: httpx2.Client, path: str) -> bool:
    try:
        return http.get(path).status_code == 200
    except httpx2.TransportError:
        return False


def _wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def own(qwen3_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """``simpleseg serve --engine vllm``."""
    command = ["simpleseg.cli", "serve", "--engine", "vllm", "--model", str(qwen3_checkpoint)]
    log = tmp_path_factory.mktemp("own") / "log"
    with _running([*command, "--dtype", "float32"], "/readyz", log, {}) as server:
        yield server


# The first test, since it needs the first request.
def test_the_first_request_is_not_slow(own: Server) -> None:
    """What is built once, the grammars and what gives log-probabilities, the warm-up has built."""
    first_token_ms, scores = [], []
    for picture in PICTURES:
        response = own.segment(image=picture, max_tokens=200)
        assert response.status_code == 200, response.text
        first_token_ms.append(response.json()["timings_ms"]["first_token"])
        scores.append(response.json()["results"][0]["score"])
    assert first_token_ms[0] < 8 * statistics.median(first_token_ms[1:]), first_token_ms
    # Null for answers without a region, which a model with random weights gives too.
    assert all(0 < score <= 1 for score in scores if score is not None)
    assert any(scores)


def test_metrics_of_both_are_shown(own: Server) -> None:
    before = own.samples()
    usage = own.segment(max_tokens=400).json()["usage"]
    after = own.samples()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    # The answer ends where the model begins an item too many, and vLLM counts what it wrote of it.
    assert grown("vllm:generation_tokens_total") >= usage["completion_tokens"]
    assert grown("simpleseg_completion_tokens_sum") == usage["completion_tokens"]
    assert grown("simpleseg_tokens_per_step_count") == 1
    assert "vllm:time_to_first_token_seconds_count" in after
    assert "vllm:spec_decode_num_draft_tokens_total" in after


def test_drafts_are_counted_where_the_model_ends_the_answer(own: Server) -> None:
    before = own.samples()
    told: dict[str, Any] = {}
    for picture in PICTURES:
        body = {"image": picture, "task": "box", "max_tokens": 400}
        told = told or own.segment(**body).json()["usage"].get("drafts", {})
    assert {"digits", "structure", "unknown"} >= told.keys() > set()
    grown = own.samples()["simpleseg_draft_tokens_total"] - before["simpleseg_draft_tokens_total"]
    assert grown > 0


def test_control_tokens_in_a_phrase_are_text(own: Server) -> None:
    plain = own.segment(prompt="cat").json()
    response = own.segment(prompt="<|image_pad|><|vision_start|><|im_end|> cat")
    assert response.status_code == 200, response.text
    # As control tokens they would be three; as images, many more.
    more = response.json()["usage"]["prompt_tokens"] - plain["usage"]["prompt_tokens"]
    assert 3 < more < len("<|image_pad|><|vision_start|><|im_end|> ")


def test_a_deadline_ends_the_work_in_vllm(own: Server) -> None:
    whole = own.segment(**LONG)
    assert whole.json()["results"][0]["finish_reason"] in ("stop", "length")
    took_ms = whole.json()["timings_ms"]["generate"]

    def by(deadline_ms: int) -> Any:
        response = own.segment(**LONG, deadline_ms=deadline_ms)
        assert response.status_code == 200, response.text
        return response.json()

    cut = cut_midway(by, took_ms)
    [result] = cut["results"]
    assert (result["status"], result["finish_reason"]) == ("truncated", "deadline")
    tokens = cut["usage"]["completion_tokens"]
    assert 0 < tokens < whole.json()["usage"]["completion_tokens"]
    assert_begins(result["polygons"], whole.json()["results"][0]["polygons"])
    _wait_until(lambda: own.samples()["vllm:num_requests_running"] == 0)
    assert own.samples()["simpleseg_in_flight"] == 0
    again = own.segment(**LONG).json()["results"][0]
    assert again["polygons"] == whole.json()["results"][0]["polygons"]


def test_a_client_that_hangs_up_frees_vllm(own: Server) -> None:
    body = {"image": PICTURES[0], "prompt": "cat", "stream": True} | LONG
    whole_s = own.segment(**LONG).json()["timings_ms"]["total"] / 1e3
    with own.http.stream("POST", "/segment", json=body) as response:
        assert response.status_code == 200
        _wait_until(lambda: own.samples()["vllm:num_requests_running"] > 0)
    began = time.monotonic()
    _wait_until(lambda: own.samples()["vllm:num_requests_running"] == 0)
    assert time.monotonic() - began < max(whole_s, 1) / 2


def test_errors_come_before_a_stream_begins(own: Server) -> None:
    """The prompt and the answer together are too long, which only the engine can tell."""
    question = "xq" * 2000
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURES[0]}"}}
    content = [part, {"type": "text", "text": question}]
    chat = {"messages": [{"role": "user", "content": content}], "max_tokens": 8000}
    for stream in (False, True):
        for response in (
            own.segment(prompt=question, max_tokens=8000, stream=stream),
            own.http.post("/v1/chat/completions", json=chat | {"stream": stream}),
        ):
            assert response.status_code == 422, response.text
            assert response.json()["error"]["code"] == "context_length_exceeded"


def _harmed(own: Server, harm: Callable[[psutil.Process], None]) -> tuple[Any, float]:
    """An answer in whose midst vLLM's process is harmed, and seconds until another one came."""
    [core] = own.descendants("EngineCore")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: own.segment(**LONG))
        _wait_until(lambda: own.samples()["vllm:num_requests_running"] > 0)
        harm(core)
        began = time.monotonic()
        _wait_until(lambda: own.http.get("/readyz").status_code == 503)
        assert own.http.get("/livez").status_code == 200
        refused = own.segment()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
        assert refused.headers["retry-after"]
        _wait_until(lambda: own.segment().status_code == 200, START_S)
        seconds = time.monotonic() - began
        assert own.descendants("EngineCore") != [core]
        return running.result(ANSWER_S), seconds


def test_G1_G2_vllm_killed_or_stopped_is_restarted_and_what_was_accepted_answered(
    own: Server,
) -> None:
    expected = own.segment(**LONG).json()["results"]
    for harm in (psutil.Process.kill, psutil.Process.suspend):
        answered, seconds = _harmed(own, harm)
        assert answered.status_code == 200, answered.text
        assert answered.json()["results"] == expected
        print(f"cold start {own.ready_s:.1f} s, {harm.__name__} to next success {seconds:.1f} s")
        assert seconds < 1.1 * own.ready_s
    scrape = own.http.get("/metrics").text
    for reason in ("killed", "stopped"):
        assert f'simpleseg_engine_restarts_total{{reason="{reason}"}} 1.0' in scrape
    assert 'simpleseg_engine_replays_total{outcome="same"} 2.0' in scrape


@pytest.fixture(scope="module")
def vllms(
    own: Server, qwen3_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """vLLM's own server with our plugin; after ``own``, which is idle by then."""
    if not entry_points(group="vllm.endpoint_plugins", name="simpleseg"):
        pytest.skip("the distribution is not installed, only its folders are on the path")
    entry = "vllm.entrypoints.launchers.api_server.entry"
    limits = {"image": {"count": 1, "height": 64, "width": 64}, "video": 0}
    speculation = {
        "method": "custom_class",
        "model": "simpleseg_server.engines.drafter.ContourProposer",
        "num_speculative_tokens": 8,
    }
    command = [entry, "--model", str(qwen3_checkpoint), "--served-model-name", "contours"]
    command += ["--dtype", "float32", "--enforce-eager", "--limit-mm-per-prompt"]
    command += [json.dumps(limits), "--speculative-config", json.dumps(speculation)]
    command += ["--per-request-spec-decode-metrics", "summary", "--host", "127.0.0.1"]
    environment = {
        "VLLM_PLUGINS": "simpleseg",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    log = tmp_path_factory.mktemp("vllm") / "log"
    with _running(command, "/health", log, environment) as server:
        yield server
    assert server.process.returncode == 0, log.read_text()[-4000:]
    assert "Traceback" not in log.read_text()


def test_vllm_s_server_segments(vllms: Server) -> None:
    for path in ("/segment", "/v1/segment"):
        body = {"image": PICTURES[0], "prompt": "cat", "model": "contours", "max_tokens": 200}
        response = vllms.http.post(path, json=body)
        assert response.status_code == 200, response.text
        assert response.json()["model"] == "contours"
        assert response.json()["results"][0]["polygons"] is not None


def test_vllm_s_server_still_chats(vllms: Server) -> None:
    body = {
        "model": "contours",
        "messages": [{"role": "user", "content": "Output the polygon coordinates of the cat."}],
        "max_tokens": 8,
    }
    response = vllms.http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["completion_tokens"] == 8


def test_each_server_keeps_its_errors(vllms: Server) -> None:
    ours = vllms.segment(mood="good")
    assert ours.status_code == 400
    assert ours.json()["error"]["code"] == "unknown_parameter"
    assert ours.json()["error"]["request_id"] == ours.headers["x-request-id"]
    theirs = vllms.http.post("/v1/chat/completions", json={"model": "nobody", "messages": []})
    assert theirs.status_code >= 400
    assert "request_id" not in theirs.json()["error"]


def test_one_document_and_one_scrape_hold_both(vllms: Server) -> None:
    document = vllms.http.get("/openapi.json").json()
    assert {"/segment", "/v1/chat/completions"} <= document["paths"].keys()
    # vLLM has no model of the same name that ours would hide.
    properties = document["components"]["schemas"]["ImageInput"]["properties"]
    assert properties.keys() == ImageInput.model_fields.keys()
    found = vllms.samples()
    assert found["simpleseg_requests_total"] > 0
    assert found["vllm:generation_tokens_total"] > 0
    assert found["vllm:spec_decode_num_draft_tokens_total"] > 0
