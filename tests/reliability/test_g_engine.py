"""Engines that die, hang, take all memory, cannot start: section G of the catalogue."""

import asyncio
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from starlette.testclient import TestClient

import simpleseg_server
from simpleseg_polygon.codec import parse_region
from simpleseg_polygon.geometry import ImageSize, Point, Region
from simpleseg_polygon.raster import region_to_rle
from simpleseg_server.app import create_app
from simpleseg_server.config import Settings
from simpleseg_server.engines.base import (
    Engine,
    EngineAwayError,
    EngineDeadError,
    EngineError,
    GenerationRequest,
    PromptRefusedError,
)
from simpleseg_server.engines.choose import Supervision, make_engine
from simpleseg_server.supervision import deaths
from simpleseg_server.supervision.process import ProcessEngine, preload
from simpleseg_server.supervision.supervisor import SupervisedEngine
from simpleseg_server.supervision.vitals import Patience

from .canary import IMAGE64
from .puppet import Puppet, answer_to, ask

DEMO_MODEL = Path(simpleseg_server.__file__).parent / "demo_model"
PATIENCE = Patience(idle_s=1.0, stopped_s=0.5)


@pytest.fixture(autouse=True, scope="module")
def _preloaded() -> None:
    """Every engine here is forked from a process that has imported what the embedded one needs."""
    preload("simpleseg_server.engines.embedded_preload")


@pytest.fixture
def puppet(tmp_path: Path) -> Callable[..., SupervisedEngine]:
    """A supervised engine whose processes leave their marks in the test's folder."""

    def make(*, spare: bool = False, max_batch: int = 8, **strings: Any) -> SupervisedEngine:
        def one(most: int | None) -> Engine:
            return ProcessEngine(Puppet(tmp_path, max_batch=most or 8, **strings), PATIENCE)

        return SupervisedEngine(one, max_batch=max_batch, spare=spare)

    return make


MakePuppet = Callable[..., SupervisedEngine]


@asynccontextmanager
async def running(engine: SupervisedEngine) -> AsyncIterator[SupervisedEngine]:
    await engine.start()
    try:
        yield engine
        check = ask(10_000)
        assert await text_of(engine, check) == answer_to(check)  # the canary
    finally:
        await engine.close()


async def text_of(engine: Engine, request: GenerationRequest) -> str:
    """The whole answer, told piece by piece and each piece once."""
    async with aclosing(engine.generate(request)) as deltas:
        seen = [delta async for delta in deltas]
    assert seen[-1].finish_reason is not None
    text = "".join(delta.text for delta in seen)
    assert "".join(token.text for delta in seen for token in delta.tokens) == text
    return text


async def all_of(
    engine: Engine, requests: Sequence[GenerationRequest]
) -> list[str | BaseException]:
    return await asyncio.gather(*(text_of(engine, one) for one in requests), return_exceptions=True)


def pid_of(engine: SupervisedEngine) -> int:
    first = engine.engines[0]
    assert isinstance(first, ProcessEngine)
    assert first.pid is not None
    return first.pid


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.01)


def test_G1_what_was_accepted_is_answered_though_the_engine_is_killed_twice(
    puppet: MakePuppet,
) -> None:
    async def run() -> None:
        requests = [ask(number) for number in range(12)]
        async with running(puppet(delay_s=0.02)) as engine:
            tasks = [asyncio.create_task(text_of(engine, one)) for one in requests]
            for _ in range(2):
                await until(lambda: bool(engine.engines))
                await asyncio.sleep(0.1)  # in the midst of their answers
                os.kill(pid_of(engine), signal.SIGKILL)
                await until(lambda: not engine.engines)
            assert await asyncio.gather(*tasks) == [answer_to(one) for one in requests]
            assert engine.restarts == {"killed": 2}
            assert engine.replays["differs"] == 0

    asyncio.run(run())


def test_G1_killed_while_idle_it_is_replaced_unasked(puppet: MakePuppet) -> None:
    async def run() -> None:
        async with running(puppet()) as engine:
            killed = pid_of(engine)
            os.kill(killed, signal.SIGKILL)
            await until(lambda: not engine.engines)
            with pytest.raises(EngineAwayError):
                engine.check_health()
            await until(lambda: bool(engine.engines))
            assert pid_of(engine) != killed

    asyncio.run(run())


def test_G1_killed_while_it_starts_it_starts_again(puppet: MakePuppet, tmp_path: Path) -> None:
    async def run() -> None:
        engine = puppet(start_s=1.0)
        starting = asyncio.create_task(engine.start())
        mark = tmp_path / "pid"
        await until(lambda: mark.exists() and bool(mark.read_text()))
        os.kill(int(mark.read_text()), signal.SIGKILL)
        await starting
        assert engine.restarts == {"killed": 1}
        assert len((tmp_path / "starts").read_text()) == 2
        await engine.close()

    asyncio.run(run())


def test_G1_a_spare_takes_over_without_a_start(puppet: MakePuppet, tmp_path: Path) -> None:
    async def run() -> None:
        async with running(puppet(spare=True, start_s=0.3, delay_s=0.02)) as engine:
            await until(lambda: len(engine.engines) == 2)
            requests = [ask(number) for number in range(6)]
            tasks = [asyncio.create_task(text_of(engine, one)) for one in requests]
            await asyncio.sleep(0.1)
            os.kill(pid_of(engine), signal.SIGKILL)
            assert await asyncio.gather(*tasks) == [answer_to(one) for one in requests]
            assert len((tmp_path / "starts").read_text()) == 2, "it waited for another start"
            await until(lambda: len(engine.engines) == 2)

    asyncio.run(run())


@contextmanager
def served(engine: SupervisedEngine) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(), engine)) as client:
        _wait_for(client, "/readyz", 200)
        yield client


def _wait_for(client: TestClient, path: str, status: int) -> None:
    deadline = time.monotonic() + 120
    while client.get(path).status_code != status:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _segment(client: TestClient, prompt: str) -> Any:
    return client.post("/segment", json={"image": IMAGE64, "prompt": prompt})


def test_G1_meanwhile_the_server_is_alive_and_says_when_to_come_back(puppet: MakePuppet) -> None:
    engine = puppet(start_s=0.5)
    with served(engine) as client:
        before = _segment(client, "a dog").json()["results"]
        os.kill(pid_of(engine), signal.SIGKILL)
        _wait_for(client, "/readyz", 503)
        refused = _segment(client, "a dog")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "engine_unavailable"
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/livez").status_code == 200
        assert 'simpleseg_engine_state{state="waiting"} 1.0' in client.get("/metrics").text
        _wait_for(client, "/readyz", 200)
        assert _segment(client, "a dog").json()["results"] == before
        metrics = client.get("/metrics").text
        assert 'simpleseg_engine_restarts_total{reason="killed"} 1.0' in metrics
        assert 'simpleseg_engine_state{state="ready"} 1.0' in metrics


@pytest.mark.parametrize(
    ("order", "reason"), [("block-once", "hang"), ("stall-once", "hang"), (None, "stopped")]
)
def test_G2_a_hung_engine_is_found_and_replaced(
    puppet: MakePuppet, order: str | None, reason: str
) -> None:
    async def run() -> None:
        async with running(puppet(delay_s=0.02)) as engine:
            requests = [ask(number) for number in range(4)]
            if order is not None:
                requests.append(ask(4, order))
            tasks = [asyncio.create_task(text_of(engine, one)) for one in requests]
            if order is None:
                await asyncio.sleep(0.1)
                os.kill(pid_of(engine), signal.SIGSTOP)
            assert await asyncio.gather(*tasks) == [answer_to(one) for one in requests]
            assert engine.restarts == {reason: 1}

    asyncio.run(run())


def test_G2_one_that_is_stopped_while_idle_is_found(puppet: MakePuppet) -> None:
    async def run() -> None:
        async with running(puppet()) as engine:
            stopped = psutil.Process(pid_of(engine))
            stopped.suspend()
            await until(lambda: not stopped.is_running() or stopped.status() == "zombie")
            await until(lambda: bool(engine.engines))

    asyncio.run(run())


def test_G3_out_of_memory_the_batch_shrinks_and_nobody_is_blamed(puppet: MakePuppet) -> None:
    async def run() -> None:
        async with running(puppet(most_together=3, delay_s=0.02)) as engine:
            for load in range(4):
                requests = [ask(10 * load + number) for number in range(8)]
                assert await all_of(engine, requests) == [answer_to(one) for one in requests]
            assert engine.restarts["memory"] >= 2
            assert engine.max_batch is not None
            assert engine.max_batch <= 3
            assert engine.replays["poisoned"] == 0

    asyncio.run(run())


def test_G3_a_request_that_takes_all_memory_once_is_answered(puppet: MakePuppet) -> None:
    async def run() -> None:
        async with running(puppet()) as engine:
            greedy = ask(1, "hog-once")
            assert await text_of(engine, greedy) == answer_to(greedy)
            assert engine.restarts == {"memory": 1}

    asyncio.run(run())


def test_G4_a_poisonous_request_is_refused_and_no_other_is_lost(puppet: MakePuppet) -> None:
    async def run() -> None:
        async with running(puppet(delay_s=0.02)) as engine:
            good = [ask(number) for number in range(7)]
            *others, refused = await all_of(engine, [*good, ask(99, "poison")])
            assert others == [answer_to(one) for one in good]
            assert isinstance(refused, PromptRefusedError)
            assert refused.code == "request_poisoned"
            assert engine.restarts == {"crash": 2}
            again = await all_of(engine, [ask(99, "poison", request_id="another")])
            assert isinstance(again[0], PromptRefusedError)
            assert engine.restarts == {"crash": 2}, "sent again, it ended the engine again"

    asyncio.run(run())


def test_G4_poison_is_422_for_its_client(puppet: MakePuppet) -> None:
    with served(puppet()) as client:
        response = _segment(client, "poison")
        assert response.status_code == 422
        assert response.json()["error"]["code"] == "request_poisoned"
        _wait_for(client, "/readyz", 200)


def test_G5_a_crash_loop_backs_off_is_told_and_ends(
    puppet: MakePuppet, tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    monkeypatch.setattr(deaths, "_FIRST_WAIT_S", 0.05)
    engine = puppet(life_s=0.2)
    starts = tmp_path / "starts"
    with caplog.at_level(logging.ERROR, "simpleseg_server"), served(engine) as client:
        while engine.state != "crash_loop":
            time.sleep(0.01)
        assert client.get("/readyz").status_code == 503
        assert client.get("/livez").status_code == 200
        assert _segment(client, "a dog").status_code == 503
        assert len(starts.read_text()) >= deaths.LOOP_DEATHS
        told = [vars(one)["fields"] for one in caplog.records if hasattr(one, "fields")]
        waits = [one["wait_s"] for one in told if one["event"] == "engine_died"]
        assert len(waits) >= deaths.LOOP_DEATHS
        assert waits == sorted(waits)
        assert waits[-1] >= 8 * waits[1]
        assert told[-1]["crash_loop"]
        (tmp_path / "healed").touch()
        _wait_for(client, "/readyz", 200)
        assert _segment(client, "a dog").status_code == 200


def test_G14_no_answer_is_anothers_while_engines_are_killed(puppet: MakePuppet) -> None:
    rng = random.Random(0)

    async def run() -> None:
        async with running(puppet(spare=True, delay_s=0.001)) as engine:
            requests = [ask(number) for number in range(400)]
            gate = asyncio.Semaphore(24)

            async def one(request: GenerationRequest) -> str:
                async with gate:
                    return await text_of(engine, request)

            tasks = [asyncio.create_task(one(request)) for request in requests]
            for _ in range(3):
                await asyncio.sleep(rng.uniform(0.05, 0.3))
                await until(lambda: bool(engine.engines))
                os.kill(pid_of(engine), signal.SIGKILL)
            answers = await asyncio.gather(*tasks)
            assert answers == [answer_to(request) for request in requests]
            assert len(set(answers)) == len(answers)

    asyncio.run(run())


def _without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _with_torn_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100_000])


def _with_another_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')


@pytest.mark.parametrize("harm", [_without_weights, _with_torn_weights, _with_another_tokenizer])
def test_G15_a_broken_checkpoint_is_said_and_not_tried_again(
    harm: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, folder)
    harm(folder)
    engine = make_engine("embedded", str(folder), supervision=Supervision(PATIENCE))
    assert isinstance(engine, SupervisedEngine)
    with pytest.raises(EngineError) as raised:
        asyncio.run(engine.start())
    assert not isinstance(raised.value, EngineDeadError)
    assert engine.restarts == {}


def test_G15_the_server_exits_with_one_clear_line(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, folder)
    _with_torn_weights(folder)
    command = [sys.executable, "-m", "simpleseg.cli", "serve", "--engine", "embedded"]
    command += ["--port", "0", "--log-format", "json", "--model", str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 1, ended.stderr
    lines = [json.loads(line) for line in ended.stderr.splitlines() if line.startswith("{")]
    errors = [line for line in lines if line["level"] == "error"]
    assert len(errors) == 1, errors
    assert "the engine cannot start" in errors[0]["message"]
    assert "incomplete metadata" in errors[0]["text"]
    assert "Traceback" not in ended.stderr


def test_G1_G2_the_embedded_engine_says_the_same_after_a_kill_and_a_stop() -> None:
    async def run() -> None:
        engine = make_engine("embedded", str(DEMO_MODEL), supervision=Supervision(PATIENCE))
        assert isinstance(engine, SupervisedEngine)
        await engine.start()
        try:
            requests = [ask(number, max_points=8) for number in range(4)]
            expected = [await text_of(engine, one) for one in requests]
            for harm in (signal.SIGKILL, signal.SIGSTOP):
                tasks = [asyncio.create_task(text_of(engine, one)) for one in requests]
                async with aclosing(engine.generate(ask(9, max_points=8))) as deltas:
                    await anext(deltas)  # so that answers are half written
                    os.kill(pid_of(engine), harm)
                    assert await asyncio.gather(*tasks) == expected
            assert engine.restarts == {"killed": 1, "stopped": 1}
            assert await asyncio.to_thread(engine.tokenize, "a dog")
        finally:
            await engine.close()

    asyncio.run(run())


def test_H3_the_engine_ends_with_a_server_that_is_killed(tmp_path: Path) -> None:
    code = f"""
import asyncio, time
from pathlib import Path
from simpleseg_server.supervision.process import ProcessEngine
from {Puppet.__module__} import Puppet
engine = ProcessEngine(Puppet(Path({str(tmp_path)!r})))
asyncio.run(engine.start())
print(engine.pid, flush=True)
time.sleep(600)
"""
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    with server.stdout:
        child = psutil.Process(int(server.stdout.readline()))
    server.kill()
    server.wait()
    child.wait(30)


def test_G12_extreme_coordinates_and_many_vertices_take_bounded_time() -> None:
    """Written by hand: an engine that keeps to the grammar never would."""
    ring = ", ".join(["[9e99, -2147483648]", "[0.1, 0.1]", "[-1e300, nan]", "[0.7, 0.2]"] * 5000)
    began = time.process_time()
    region = parse_region(f"[[{ring}]]").value
    region_to_rle(region, ImageSize(8192, 8192))
    seconds = time.process_time() - began
    square = Region((tuple(Point(x, y) for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))),))
    began = time.process_time()
    for _ in range(20):
        region_to_rle(square, ImageSize(8192, 8192))
    usual = (time.process_time() - began) / 20
    assert sum(map(len, region.parts)) <= 8192
    assert seconds < 1000 * max(usual, 1e-3)


def test_G13_256_parts_on_50_megapixels_take_the_memory_of_their_outlines() -> None:
    rng = np.random.default_rng(0)
    parts = []
    for x, y in rng.random((256, 2)) * 0.9:
        corners = ((x, y), (x + 0.08, y), (x + 0.08, y + 0.08), (x, y + 0.08))
        parts.append(tuple(Point(float(a), float(b)) for a, b in corners))
    size = ImageSize(10_000, 5_000)
    tracemalloc.start()
    region_to_rle(Region(tuple(parts)), size)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < size.width * size.height / 2, "half of a mask of a byte for each pixel"
