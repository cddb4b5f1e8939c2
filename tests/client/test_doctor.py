"""`simpleseg doctor`: what it finds on this machine, and on ones where something is wrong."""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from typer.testing import CliRunner

from simpleseg import __version__, doctor
from simpleseg.cli import app
from simpleseg_server.config import Settings
from simpleseg_server.engines import choose
from simpleseg_server.engines.scripted import ScriptedEngine

from .serving import TRIANGLE, serving

SMI = "#!/bin/sh\necho 'NVIDIA H100, 81559 MiB, 570.1'\n"


@pytest.fixture(autouse=True)
def _free_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMPLESEG_PORT", "0")


def _run(*arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The status, and the checks by name."""
    run = CliRunner().invoke(app, ["doctor", "--json", *arguments], catch_exceptions=False)
    told = json.loads(run.stdout)
    assert told["can_serve"] is (run.exit_code == 0)
    return run.exit_code, {check["name"]: check for check in told["checks"]}


def test_a_machine_that_can_serve() -> None:
    status, found = _run()
    assert status == 0
    assert list(found) == ["versions", "extras", "gpu", "settings", "model", "engine", "ports"]
    assert found["versions"]["facts"]["simpleseg"] == __version__
    assert "torch" in found["versions"]["facts"]["packages"]
    assert found["extras"]["facts"]["missing"]["server"] == []
    assert found["engine"]["facts"]["engine"] == choose.best_engine()[0]
    assert found["model"]["facts"]["model_type"] == "qwen3_vl"
    assert 'port = "0"' not in found["settings"]["detail"]
    assert "port = 0  # SIMPLESEG_PORT" in found["settings"]["facts"]["in_effect"]


def test_what_people_read_says_the_same() -> None:
    run = CliRunner().invoke(app, ["doctor"], catch_exceptions=False)
    assert run.stdout.splitlines()[-1] == "This machine can serve: simpleseg serve"
    assert run.stdout.count("\nok") >= 4


@pytest.mark.parametrize(
    ("arguments", "name", "words"),
    [
        (["--model", "./nowhere"], "model", "./nowhere is not a checkpoint folder"),
        (["--model", "./nowhere"], "engine", "./nowhere is not a checkpoint folder"),
        (["--engine", "remote"], "engine", "upstream"),
        (["--dtype", "float16"], "engine", "the embedded engine has no option dtype"),
        (["--engine", "vllm"], "engine", "vllm is not installed"),
        (["--max-prompts", "0"], "settings", "--max-prompts: max_prompts"),
        (["--api-keys-file", "/nowhere"], "settings", "/nowhere: No such file"),
        (["--config", "/nowhere"], "settings", "/nowhere: No such file"),
        (["--url", "http://127.0.0.1:9"], "server", "no server answers at http://127.0.0.1:9"),
    ],
)
def test_a_problem_is_named_and_the_status_is_1(
    arguments: list[str], name: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "is_vllm_installed", lambda: False)
    status, found = _run(*arguments)
    assert status == 1
    assert found[name]["status"] == "problem"
    assert words in found[name]["detail"]


def test_the_command_to_install_vllm_is_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "is_vllm_installed", lambda: False)
    _, found = _run("--engine", "vllm")
    assert found["engine"]["fix"] == "pip install 'simpleseg-server[server,vllm]'"


def test_a_taken_port_is_a_problem() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, found = _run("--port", port)
    assert (status, found["ports"]["status"]) == (1, "problem")
    assert f"cannot listen on 127.0.0.1:{port}" in found["ports"]["detail"]


def test_secrets_do_not_show_and_an_open_server_is_noted() -> None:
    _, found = _run("--host", "0.0.0.0")
    assert "everybody is served" in found["settings"]["detail"]
    status, found = _run("--host", "0.0.0.0", "--api-key", "canary-4711")
    assert (status, found["settings"]["status"]) == (0, "ok")
    assert "4711" not in json.dumps(found)


def test_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(engine: Literal["embedded", "remote"] = "embedded") -> doctor.Check:
        return doctor.model(Settings(model=str(tmp_path), engine=engine))

    (tmp_path / "config.json").write_text("{")
    assert look().status == "problem"
    (tmp_path / "config.json").write_text('{"model_type": "kimi_vl"}')
    assert "has no weights" in look().detail
    assert look("remote").status == "ok"
    (tmp_path / "model.safetensors").write_bytes(bytes(2**20))
    assert (look().status, look().facts["weight_bytes"]) == ("ok", 2**20)
    assert look().facts["needs_vllm"] is True
    (tmp_path / "simpleseg.json").write_text('{"colour": "red"}')
    assert "simpleseg.json: unknown entry colour" in look().detail
    (tmp_path / "simpleseg.json").unlink()
    monkeypatch.setattr(doctor, "_available_memory", lambda: 2**19)
    assert (look().status, "of memory that are free" in look().detail) == ("note", True)


def test_a_model_that_would_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "is_vllm_installed", lambda: False)
    _, found = _run("--model", "sthui/SimpleSeg-Kimi-VL")
    assert found["model"]["fix"].endswith("hf download sthui/SimpleSeg-Kimi-VL")
    assert "use --engine vllm" in found["engine"]["detail"]


def test_a_driver_whose_gpu_torch_does_not_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = doctor.gpu()
    assert found.facts["driver"] == ["NVIDIA H100, 81559 MiB, 570.1"]
    assert found.status == "note"
    assert "pytorch.org" in (found.fix or "")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert doctor.gpu().status == "ok"


def test_a_server_is_asked_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(ScriptedEngine([TRIANGLE]), api_keys=("k-4711",)) as url:
        refused = doctor.server(url)
        assert (refused.status, refused.fix) == ("problem", "put the key into SIMPLESEG_API_KEY")
        monkeypatch.setenv("SIMPLESEG_API_KEY", "k-4711")
        found = doctor.server(url)
    assert found.status == "ok"
    assert found.facts["version"] == __version__
