"""The catalogue's section H, its first rows: what signals do to a server."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from ..server.processes import scripted_server, status_of, wait_for
from .wire import IMAGE, Connection, ask, body_of, gauge, request

SETTINGS = {"ops_port": "0", "max_running_prompts": "2", "max_queued_requests": "20"}


class Client(threading.Thread):
    """Asks once, and keeps the answer's status, or the name of what was raised."""

    def __init__(self, url: str, prompt: str = "short") -> None:
        super().__init__()
        self.result: int | str = ""
        self._url, self._prompt = url, prompt
        self.start()

    def run(self) -> None:
        try:
            self.result = ask(self._url, request(body=body_of(self._prompt))).status
        except (OSError, EOFError) as error:
            self.result = type(error).__name__


def test_H1_sigterm_idle(tmp_path: Path) -> None:
    with scripted_server(tmp_path / "log", **SETTINGS) as (process, (main, _)):
        with Connection(main) as idle:
            idle.send(request("GET", "/livez"))
            assert idle.answer().status == 200
            process.send_signal(signal.SIGTERM)
            assert idle.is_closed()
        assert process.wait(60) == 0


def test_H1_sigterm_under_load(tmp_path: Path) -> None:
    """More than it can do is asked of it from before to after the signal."""
    with scripted_server(tmp_path / "log", **SETTINGS, drain_s="0.2") as (process, (main, _)):
        clients: list[Client] = []
        for count in range(150):
            if count == 75:
                process.send_signal(signal.SIGTERM)
            clients.append(Client(main))
            time.sleep(0.005)
        for client in clients:
            client.join()
        assert process.wait(60) == 0
    results = [client.result for client in clients]
    assert set(results[:75]) <= {200, 503}
    assert set(results) <= {200, 503, "ConnectionRefusedError"}
    assert results.count(200) > 20


def test_H1_what_has_arrived_is_answered(tmp_path: Path) -> None:
    """Bytes that the server has not read yet, and connections that it has not accepted: it is
    stopped, in the literal sense, while they come and while it is told to end."""
    with scripted_server(tmp_path / "log", **SETTINGS) as (process, (main, _)):
        with ExitStack() as held:
            kept = held.enter_context(Connection(main))
            kept.send(request("GET", "/livez"))
            assert kept.answer().status == 200
            process.send_signal(signal.SIGSTOP)
            kept.send(request(body=body_of("short")))
            waiting = [held.enter_context(Connection(main)) for _ in range(20)]
            for connection in waiting:
                connection.send(request(body=body_of("short")))
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)
            answers = [connection.answer() for connection in [kept, *waiting]]
            assert {answer.status for answer in answers} <= {200, 503}
            assert {answer.headers["connection"] for answer in answers} == {"close"}
            assert [answer.status for answer in answers].count(200) >= 10
            assert all(connection.is_closed() for connection in [kept, *waiting])
        assert process.wait(60) == 0


def test_H1_drains_in_order(tmp_path: Path) -> None:
    """Not ready, then refusing with 503, while what was accepted goes on, then gone."""
    with scripted_server(tmp_path / "log", **SETTINGS, drain_s="0.5") as (process, (main, ops)):
        slow = Client(main, "slow")
        wait_for(lambda: gauge(ops, "simpleseg_in_flight") == 1)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: status_of(f"{ops}/readyz") == 503)
        assert slow.is_alive()
        answers = []
        while slow.is_alive():
            with suppress(OSError, EOFError):
                answers.append(ask(main, request(body=body_of())))
        assert status_of(f"{ops}/livez") in (200, None)
        refused = [answer for answer in answers if answer.status == 503]
        assert {answer.code for answer in refused} == {"draining"}
        assert all("retry-after-ms" in answer.headers for answer in refused)
        statuses = [answer.status for answer in answers]
        assert statuses == sorted(statuses)  # it took requests first
        assert slow.result == 200
        assert process.wait(60) == 0


def test_H1_what_takes_too_long_is_told_so(tmp_path: Path) -> None:
    settings = {**SETTINGS, "shutdown_timeout_s": "1", "drain_s": "0"}
    with scripted_server(tmp_path / "log", **settings) as (process, (main, ops)):
        with Connection(main) as connection:
            connection.send(request(body=body_of("endless")))
            wait_for(lambda: gauge(ops, "simpleseg_in_flight") == 1)
            process.send_signal(signal.SIGTERM)
            answer = connection.answer()
        assert (answer.status, answer.code) == (503, "draining")
        assert process.wait(60) == 0


TEXT = "Output the polygon coordinates of the unfinished dog in the image."
URL = f"data:image/png;base64,{IMAGE}"
CONTENT = [{"type": "image_url", "image_url": {"url": URL}}, {"type": "text", "text": TEXT}]
STREAMS: dict[str, dict[str, Any]] = {
    "/segment": body_of("unfinished"),
    "/v1/chat/completions": {"messages": [{"role": "user", "content": CONTENT}]},
    "/v1/segment": {"image_url": URL, "object": "unfinished"},  # Moondream's
}


def test_H1_a_stream_that_takes_too_long_is_told_so(tmp_path: Path) -> None:
    """It ends as streams do, the error its last event, also beside a request that is none."""
    settings = {**SETTINGS, "max_running_prompts": "4", "enable": "moondream"}
    settings |= {"shutdown_timeout_s": "1", "drain_s": "0"}
    with scripted_server(tmp_path / "log", **settings) as (process, (main, ops)):
        with ExitStack() as held:
            plain, *streams = [held.enter_context(Connection(main)) for _ in (None, *STREAMS)]
            plain.send(request(body=body_of("endless")))
            for stream, (path, body) in zip(streams, STREAMS.items(), strict=True):
                stream.send(request(path=path, body={**body, "stream": True}))
                assert stream.answer().status == 200  # its head; of the rest a part has come
            wait_for(lambda: gauge(ops, "simpleseg_in_flight") == 4)
            process.send_signal(signal.SIGTERM)
            for stream in streams:
                text = stream.read_to_end().decode()
                assert text.endswith("0\r\n\r\n"), "the answer breaks off"
                events = [line for line in text.splitlines() if line.startswith("data: {")]
                assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "draining"
            assert plain.answer().code == "draining"
        assert process.wait(60) == 0
    assert (tmp_path / "log").read_text().count('"status": 503') == 4, "logged as what they were"


LOADING = """
import asyncio, sys
from simpleseg_server.app import create_app
from simpleseg_server.config import Settings
from simpleseg_server.engines.scripted import ScriptedEngine
from simpleseg_server.serving import run

class Loading(ScriptedEngine):
    async def start(self):
        print("loading", flush=True)
        await asyncio.sleep(600)

run(Settings(port=0), lambda stop: create_app(Settings(), Loading(["[]"])), lambda: None)
"""


def test_H1_sigterm_during_start() -> None:
    with subprocess.Popen([sys.executable, "-c", LOADING], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"loading\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_H2_second_signal(tmp_path: Path, second: signal.Signals) -> None:
    with scripted_server(tmp_path / "log", **SETTINGS) as (process, (main, ops)):
        client = Client(main, "endless")
        wait_for(lambda: gauge(ops, "simpleseg_in_flight") == 1)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: status_of(f"{ops}/readyz") == 503)
        process.send_signal(second)
        assert process.wait(60) == 128 + second
        client.join()
        assert client.result != 200


_PARENT = """
import subprocess, sys, time
from simpleseg_server.children import descendants, kill_children

stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {stubborn!r}])"
subprocess.Popen([sys.executable, "-c", nested])
while len(started := list(descendants())) < 2:
    time.sleep(0.01)
kill_children()
print(*started)
"""


def test_H2_children_are_reaped() -> None:
    """Of a process that ends itself so, none is left, whatever they do with signals."""
    run = subprocess.run([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, check=True)
    started = [int(pid) for pid in run.stdout.split()]
    assert len(started) == 2
    wait_for(lambda: not any(map(_is_at_work, started)))


def _is_at_work(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return _is_running(psutil.Process(pid))
    return False


def _is_running(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def test_H3_sigkill_leaves_nothing_behind(tmp_path: Path) -> None:
    with scripted_server(tmp_path / "log", **SETTINGS) as (process, (main, ops)):
        children = psutil.Process(process.pid).children(recursive=True)
        client = Client(main, "endless")
        wait_for(lambda: gauge(ops, "simpleseg_in_flight") == 1)
        process.kill()
        process.wait(60)
        client.join()
        wait_for(lambda: not any(map(_is_running, children)))
    ports = {"port": str(urlsplit(main).port), "ops_port": str(urlsplit(ops).port)}
    with scripted_server(tmp_path / "again", **{**SETTINGS, **ports}) as (_, (again, _)):
        assert again == main
        assert ask(again, request(body=body_of())).status == 200


def test_H4_other_signals(tmp_path: Path) -> None:
    with scripted_server(tmp_path / "log", **SETTINGS) as (process, (main, _)):
        for other in (signal.SIGHUP, signal.SIGPIPE):
            process.send_signal(other)
            assert ask(main, request(body=body_of())).status == 200
        process.send_signal(signal.SIGSTOP)
        client = Client(main, "x")
        wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
        process.send_signal(signal.SIGCONT)
        client.join()
        assert client.result == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_nobody_is_let_in_any_more_and_those_inside_stay() -> None:
    """The kernel's part of it: the listener's queue survives, and new ones are not let in."""
    from simpleseg_server.draining import has_waiting, let_nobody_in

    with socket.create_server(("127.0.0.1", 0)) as listener:
        address: Any = listener.getsockname()
        with socket.create_connection(address) as early:
            early.sendall(b"x")
            let_nobody_in(listener)
            late = socket.socket()
            late.settimeout(0.3)
            with pytest.raises(TimeoutError):
                late.connect(address)
            late.close()
            assert has_waiting(listener)
            accepted, _ = listener.accept()
            assert accepted.recv(1) == b"x"
            accepted.close()
            assert not has_waiting(listener)
