"""Listeners and signals of a server in a process of its own, and in this one."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from simpleseg_server.config import ConfigError
from simpleseg_server.engines.scripted import Reply
from simpleseg_server.serving import address_of, bind

from .processes import scripted_server, status_of, wait_for


def test_a_second_listener_serves_operations_and_nothing_else(tmp_path: Path) -> None:
    with scripted_server(tmp_path / "log", ops_port="0", api_keys="canary-key") as (_, (main, ops)):
        for path in ("/livez", "/readyz", "/health", "/ping", "/version", "/metrics"):
            assert status_of(f"{ops}{path}") == 200
        for path in ("/v1/models", "/docs", "/openapi.json", "/segment", "/"):
            answer = httpx2.get(f"{ops}{path}")
            assert answer.status_code == 404
            assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]
        assert httpx2.post(f"{ops}/livez", content=b"x").status_code == 413
        for path in ("/livez", "/readyz", "/v1/health/live"):
            assert status_of(f"{main}{path}") == 200
        assert status_of(f"{main}/metrics") == 401
        assert status_of(f"{main}/metrics", headers={"X-API-Key": "canary-key"}) == 200
        text = httpx2.get(f"{ops}/metrics").text
        assert 'route="/metrics"' in text
        assert "canary" not in text + (tmp_path / "log").read_text()


def test_a_server_that_drains_is_alive_and_not_ready_and_finishes(
    tmp_path: Path, image64: str
) -> None:
    with scripted_server(tmp_path / "log", ops_port="0") as (process, (main, ops)):
        answers: list[int] = []

        def ask() -> None:
            body = {"image": image64, "prompt": "slow"}
            answers.append(httpx2.post(f"{main}/segment", json=body, timeout=20).status_code)

        thread = threading.Thread(target=ask)
        thread.start()
        wait_for(lambda: "simpleseg_in_flight 1.0" in httpx2.get(f"{ops}/metrics").text)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: status_of(f"{ops}/readyz") == 503)
        assert httpx2.get(f"{ops}/readyz").json()["error"]["code"] == "draining"
        assert httpx2.get(f"{ops}/livez").json()["status"] == "draining"
        thread.join(20)
        assert answers == [200]
        process.wait(20)


def test_an_open_server_that_others_reach_is_warned_of(tmp_path: Path) -> None:
    with scripted_server(tmp_path / "open", host="0.0.0.0"):
        assert "there are no API keys" in (tmp_path / "open").read_text()
    with (
        scripted_server(tmp_path / "locked", host="0.0.0.0", api_keys="k"),
        scripted_server(tmp_path / "local"),
    ):
        assert "there are no API keys" not in (tmp_path / "locked").read_text()
        assert "there are no API keys" not in (tmp_path / "local").read_text()


def test_a_taken_port_is_named_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"ops_port: cannot listen on 127.0.0.1:{port}"):
            bind("127.0.0.1", port, "ops_port")
        command = [sys.executable, "-m", "simpleseg.cli", "serve", "--port", str(port)]
        began = time.monotonic()
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.wait(60) == 2
            ended = time.monotonic()
            assert process.stderr is not None
            said = process.stderr.read()  # whose end comes when nobody has it open
            assert time.monotonic() - ended < (ended - began) / 2, "a child has outlived it"
    assert f"port: cannot listen on 127.0.0.1:{port}: Address already in use" in said
    assert "Traceback" not in said


def test_addresses() -> None:
    with bind("127.0.0.1", 0, "port") as bound:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", address_of(bound))
    with pytest.raises(ConfigError, match="host"):
        bind("nowhere.invalid", 0, "host")


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """Head, body and events are packets of their own; none may wait for another one to arrive."""

    async def is_prompt() -> int:
        seen: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def accept(_: Any, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            seen.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with bind("127.0.0.1", 0, "port") as bound:
            async with await asyncio.start_server(accept, sock=bound):
                _, writer = await asyncio.open_connection(*bound.getsockname())
                writer.close()
                return await asyncio.wait_for(seen, 10)

    assert asyncio.run(is_prompt())


def test_a_full_queue_never_fails_liveness(serve_on_socket: Any, engine: Any, image64: str) -> None:
    engine.default = Reply("[]", fault="hang")
    body = {"image": image64, "prompt": "x"}
    with serve_on_socket(engine, max_running_prompts=1, max_queued_requests=2) as url:
        wait_for(lambda: status_of(f"{url}/readyz") == 200)

        async def scenario() -> list[tuple[str, int]]:
            async with httpx2.AsyncClient(base_url=url, timeout=20) as client:
                held = [asyncio.create_task(client.post("/segment", json=body)) for _ in range(3)]
                while "simpleseg_in_flight 3.0" not in (await client.get("/metrics")).text:
                    await asyncio.sleep(0.01)
                assert (await client.post("/segment", json=body)).status_code == 503
                flood = [client.post("/segment", json=body) for _ in range(20)]
                paths = ("/livez", "/v1/health/live", "/readyz", "/health", "/ping")
                probes = [client.get(path) for path in paths * 4]
                answers = await asyncio.gather(*flood, *probes)
                engine.die()
                await asyncio.gather(*held)
                return [(answer.request.url.path, answer.status_code) for answer in answers]

        answers = asyncio.run(scenario())
    assert {status for path, status in answers if path == "/segment"} == {503}
    assert {status for path, status in answers if path != "/segment"} == {200}


def test_probes_have_the_names_of_other_servers(client: Any) -> None:
    for path in ("/ping", "/v1/health/live", "/v1/health/ready"):
        assert client.get(path).json()["status"] == "ready"
    version = client.get("/version").json()
    assert version["model"] == "scripted-model"
    assert version["engine"] == "scripted"
    assert re.fullmatch(r"[0-9a-f]{12}", version["grammar"])


def test_the_version_is_told_while_the_engine_loads(make_client: Any, engine: Any) -> None:
    engine.start_gate = threading.Event()
    with make_client(engine) as client:
        version = client.get("/version").json()
        assert (version["model"], version["engine"]) == (None, None)
        assert client.get("/ping").status_code == 503
        assert client.get("/v1/health/live").status_code == 200
        assert client.get("/v1/health/ready").status_code == 503


def test_the_check_reads_the_file_of_keys(tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text('[alice]\nkey = "canary-4711"\nrate = 1')
    command = [sys.executable, "-m", "simpleseg.cli", "serve", "--check-config"]
    for name, words in (("keys.toml", "alice.rate: unknown field"), ("none.toml", "No such file")):
        environ = os.environ | {"SIMPLESEG_API_KEYS_FILE": str(tmp_path / name)}
        run = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
        assert (run.returncode, run.stdout) == (2, "")
        assert words in run.stderr
        assert "4711" not in run.stderr
