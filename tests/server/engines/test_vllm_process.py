"""vLLM's process: where it comes from, and when it ends. The real one: test_vllm_servers.py."""

import multiprocessing
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from simpleseg_server.engines import vllm_environment, vllm_process

_SERVER = """
import multiprocessing, os, time
from simpleseg_server.engines import vllm_process

def engine():
    vllm_process.end_with_server()
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    {begin}
    multiprocessing.get_context("{method}").Process(target=engine).start()
    time.sleep(600)
"""


def _start(tmp_path: Path, begin: str, method: str) -> tuple[subprocess.Popen[str], psutil.Process]:
    script = tmp_path / "server.py"
    script.write_text(_SERVER.format(begin=begin, method=method))
    server = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    with server.stdout:
        return server, psutil.Process(int(server.stdout.readline()))


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_the_engine_ends_with_a_server_that_is_killed(tmp_path: Path, method: str) -> None:
    server, engine = _start(tmp_path, "vllm_process.begin()", method)
    server.kill()
    server.wait()
    engine.wait(30)


def test_a_vllm_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    server, engine = _start(tmp_path, "pass", "spawn")
    try:
        server.kill()
        server.wait()
        with pytest.raises(psutil.TimeoutExpired):
            engine.wait(1)
    finally:
        engine.kill()


def test_vllm_knows_what_to_call() -> None:
    found = entry_points(group="vllm.general_plugins", name="simpleseg")
    if not found:
        pytest.skip("the distribution is not installed, only its folders are on the path")
    assert [entry.load() for entry in found] == [vllm_process.end_with_server]


def _starter() -> ModuleType:
    starter = ModuleType("starter")
    starter.get_mp_context = multiprocessing.get_context  # type: ignore[attr-defined]
    return starter


def test_it_is_forked_on_a_cpu_and_nothing_is_left_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_environment, "is_for_cpu", lambda: True)
    starter = _starter()
    with vllm_process.forked(starter):
        assert starter.get_mp_context().get_start_method() == "forkserver"
    assert starter.get_mp_context is multiprocessing.get_context


def test_elsewhere_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_environment, "is_for_cpu", lambda: False)
    starter = _starter()
    with vllm_process.forked(starter):
        assert starter.get_mp_context is multiprocessing.get_context


def test_a_version_that_starts_it_in_another_way_does_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_environment, "is_for_cpu", lambda: True)
    starter = ModuleType("starter")
    with vllm_process.forked(starter):
        assert not hasattr(starter, "get_mp_context")
