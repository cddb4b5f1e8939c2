"""Section H: what the machine does to the server, and its configuration."""

import ast
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

import simpleseg_server
from simpleseg.cli import main
from simpleseg_server.app import create_app
from simpleseg_server.config import Settings
from simpleseg_server.engines.scripted import ScriptedEngine

from ..server.processes import demo_server, wait_for
from .canary import GOLDEN, IMAGE64, KEY, SERVER, address_of, fetched, posted
from .canary_server import reply
from .conftest import MakeCanary

AUTHORIZED = {"X-API-Key": KEY}


def free_port(host: str = "127.0.0.1") -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(
    stderr: IO[bytes] | int, *before: str, host: str = "127.0.0.1", **variables: str
) -> Iterator[tuple[str, str]]:
    """The addresses of a server, for clients and for operations, whose log goes to ``stderr``;
    ``before`` are words in front of its command."""
    ports = free_port(host), free_port()
    settings = {"host": host, "port": ports[0], "ops_port": ports[1], "api_keys": KEY}
    command = [*before, sys.executable, SERVER, *(f"{k}={v}" for k, v in settings.items())]
    environ = {**os.environ, **variables}
    process = subprocess.Popen(command, stderr=stderr, stdout=subprocess.DEVNULL, env=environ)
    shown = f"[{host}]" if ":" in host else host
    url, ops_url = f"http://{shown}:{ports[0]}", f"http://127.0.0.1:{ports[1]}"
    try:
        wait_for(lambda: is_ready(ops_url) or process.poll() is not None)
        yield url, ops_url
        assert process.poll() is None, "the server has ended"
    finally:
        process.terminate()
        process.wait(30)


def is_ready(url: str) -> bool:
    try:
        return b"ready" in fetched(url, "/readyz")
    except (OSError, AssertionError):
        return False


def golden(url: str) -> Any:
    status, answer = posted(url, "/segment", GOLDEN, AUTHORIZED)
    assert status == 200, answer
    return answer["results"]


def dropped(ops_url: str) -> float:
    lines = fetched(ops_url, "/metrics").decode().splitlines()
    [line] = [line for line in lines if line.startswith("simpleseg_log_lines_dropped ")]
    return float(line.split()[1])


READ_ONLY = ("unshare", "--mount", "sh", "-c", 'mount -o remount,bind,ro / && exec "$@"', "sh")


def test_H5_a_full_disk_and_no_temporary_folder() -> None:
    with (
        open("/dev/full", "ab", buffering=0) as log,
        server(log, TMPDIR="/nowhere") as (url, ops_url),
    ):
        first = golden(url)
        for _ in range(20):
            assert golden(url) == first
        assert dropped(ops_url) >= 20


def test_H5_a_read_only_disk(tmp_path: Path) -> None:
    probe = subprocess.run([*READ_ONLY, "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip(f"no mount namespaces here: {probe.stderr.decode().strip()}")
    with (tmp_path / "log").open("wb") as log, server(log, *READ_ONLY) as (url, ops_url):
        assert golden(url) == golden(url)
        assert dropped(ops_url) == 0


def test_H6_a_log_pipe_that_takes_nothing() -> None:
    """First nobody reads what fills it, then nobody is left to."""
    reader, writer = os.pipe()
    with closing_descriptors(reader, writer), server(writer) as (url, ops_url):
        first = golden(url)
        for _ in range(400):  # lines of these fill a pipe of 64 KiB
            fetched(url, "/livez")
        assert golden(url) == first
        lost = dropped(ops_url)
        assert lost > 100
        os.close(reader)
        for _ in range(10):
            assert golden(url) == first
        assert dropped(ops_url) >= lost + 10


@contextmanager
def closing_descriptors(*descriptors: int) -> Iterator[None]:
    try:
        yield
    finally:
        for descriptor in descriptors:
            with suppress(OSError):
                os.close(descriptor)


def test_H7_the_clock_jumps(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(api_keys=(SecretStr(KEY),), requests_per_minute=1000, kept_image_ttl_s=60)
    now = time.time
    with TestClient(create_app(settings, ScriptedEngine(reply)), headers=AUTHORIZED) as client:
        kept = client.post("/v1/images", json={"image": IMAGE64}).json()["id"]
        answers = []
        for jump_s in (0, 86400, -86400, 3600, 1, 10**9):
            monkeypatch.setattr(time, "time", lambda jump_s=jump_s: now() + jump_s)
            body = {**GOLDEN, "image": {"id": kept}, "deadline_ms": 60_000}
            answer = client.post("/segment", json=body)
            assert answer.status_code == 200, answer.text
            assert int(answer.headers["x-ratelimit-remaining-requests"]) > 900
            assert answer.json()["timings_ms"]["total"] < 60_000
            answers.append(answer.json()["results"])
    assert all(answer == answers[0] for answer in answers)


TOLD = {"image_store.py", "operations.py", "pipeline.py", "tracing.py", "logs.py"}
"""Modules that tell the time of day, and measure nothing by it."""


def test_H7_nothing_is_measured_by_the_time_of_day() -> None:
    asking = {
        path.name
        for path in Path(str(simpleseg_server.__file__)).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in TIMES_OF_DAY
    }
    assert asking <= TOLD


TIMES_OF_DAY = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "time.localtime"}


def test_H8_few_descriptors(tmp_path: Path) -> None:
    """More clients than descriptors: the server lives, and serves again once they have gone."""
    few = ("sh", "-c", 'ulimit -n 64 && exec "$@"', "sh")
    with (tmp_path / "log").open("wb") as log, server(log, *few) as (url, _):
        first = golden(url)
        with ExitStack() as held:
            for _ in range(100):
                held.enter_context(socket.create_connection(address_of(url)))
        wait_for(lambda: is_ready(url))
        assert golden(url) == first


SOMEBODY = ("setpriv", "--reuid=65533", "--regid=65533", "--clear-groups")
"""The limit of processes binds no administrator."""


@pytest.mark.parametrize("most", [1, 3, 5, 8])
def test_H8_few_threads_and_processes(most: int, tmp_path: Path) -> None:
    """It does not start, at once and saying why, or serves what it can."""
    user = SOMEBODY if os.geteuid() == 0 else ()
    probe = [*user, sys.executable, "-c", "import simpleseg_server"]
    if subprocess.run(probe, check=False, capture_output=True).returncode:
        pytest.skip("no other user here can run the server")
    log, ports = tmp_path / "log", (free_port(), free_port())
    command = ["prlimit", f"--nproc={most}", *user, sys.executable, SERVER]
    settings = [f"port={ports[0]}", f"ops_port={ports[1]}", "image_decoding=thread"]
    with log.open("wb") as stderr:
        process = subprocess.Popen([*command, *settings], stderr=stderr, cwd="/")
    try:
        ops_url = f"http://127.0.0.1:{ports[1]}"
        wait_for(lambda: is_ready(ops_url) or process.poll() is not None)
        if process.poll() is None:
            for _ in range(3):
                answer = posted(f"http://127.0.0.1:{ports[0]}", "/segment", GOLDEN)
                assert answer[0] in (200, 503), answer
            assert is_ready(ops_url)
        else:
            assert process.returncode != 0
            assert re.search(r"thread|process", log.read_text()), log.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("mebibytes", [64, 512])
def test_H8_little_memory(mebibytes: int, tmp_path: Path) -> None:
    """It does not start, at once and saying why, or serves."""
    log = tmp_path / "log"
    ports = free_port(), free_port()
    command = f'ulimit -v {mebibytes * 1024} && exec "$@" port={ports[0]} ops_port={ports[1]}'
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            ["sh", "-c", command, "sh", sys.executable, SERVER], stderr=stderr
        )
    try:
        ops_url = f"http://127.0.0.1:{ports[1]}"
        wait_for(lambda: is_ready(ops_url) or process.poll() is not None)
        if process.poll() is None:
            # Its decoders may have too little; that is said as of a file that takes too much.
            assert posted(f"http://127.0.0.1:{ports[0]}", "/segment", GOLDEN)[0] in (200, 422, 503)
        else:
            assert process.returncode != 0
            assert re.search(r"memory|allocate|failed to map", log.read_text(), re.IGNORECASE)
    finally:
        process.kill()
        process.wait()


SECRET = "canary-4711"
BAD_SETTINGS: dict[str, tuple[dict[str, str], str]] = {
    "unknown": ({"SIMPLESEG_MAX_PROMTS": "3"}, "max_promts"),
    "wrong type": ({"SIMPLESEG_PORT": "eighty"}, "port"),
    "out of range": ({"SIMPLESEG_MAX_PROMPTS": "0"}, "max_prompts"),
    "not finite": ({"SIMPLESEG_BODY_TIMEOUT_S": "inf"}, "body_timeout_s"),
    "empty key": ({"SIMPLESEG_API_KEYS": ""}, "api_keys"),
    "key with a space": ({"SIMPLESEG_API_KEYS": f"{SECRET} x"}, "api_keys"),
    "no file of keys": ({"SIMPLESEG_API_KEYS_FILE": "/nowhere"}, "/nowhere"),
    "no settings file": ({"SIMPLESEG_CONFIG": "/nowhere"}, "/nowhere"),
    "a folder": ({"SIMPLESEG_API_KEYS_FILE": "/"}, "/"),
    "points": ({"SIMPLESEG_DEFAULT_MAX_POINTS": "2000"}, "default_max_points is beyond"),
    "tokens": (
        {"SIMPLESEG_DEFAULT_MAX_TOKENS": "9", "SIMPLESEG_MAX_TOKENS": "8"},
        "default_max_tokens is beyond max_tokens",
    ),
    "fetches": (
        {"SIMPLESEG_MAX_FETCHES": "2", "SIMPLESEG_MAX_FETCHES_PER_HOST": "3"},
        "max_fetches_per_host is beyond max_fetches",
    ),
    "quota without keys": ({"SIMPLESEG_REQUESTS_PER_MINUTE": "1"}, "requests_per_minute"),
    "hosts without fetching": ({"SIMPLESEG_IMAGE_URL_HOSTS": "a"}, "image_url_hosts"),
}


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """``simpleseg`` with these arguments and variables: its exit status and all that it says."""

    def run(arguments: list[str], variables: dict[str, str]) -> tuple[Any, str]:
        monkeypatch.setattr(sys, "argv", ["simpleseg", *arguments])
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out + said.err

    return run


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_H9_bad_settings(case: str, command: Any) -> None:
    """The command says which setting is at fault, with and without the check."""
    environ, words = BAD_SETTINGS[case]
    for arguments in (["--check-config"], []):
        given = {"SIMPLESEG_UPSTREAM_API_KEY": SECRET, **environ}
        status, said = command(["serve", *arguments], given)
        assert status == 2, said
        assert words in said
        assert SECRET not in said
        assert "Traceback" not in said


def test_H9_an_unreadable_file_of_keys(tmp_path: Path, command: Any) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_bytes(b"\xff\xfe" + SECRET.encode())
    status, said = command(["serve"], {"SIMPLESEG_API_KEYS_FILE": str(keys)})
    assert (status, SECRET in said) == (2, False)
    assert "keys.toml: not UTF-8" in said


def test_H10_ipv6_only(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log, server(log, host="::1") as (url, _):
        assert golden(url)
        assert f"listening on {url}" in (tmp_path / "log").read_text()


def test_H10_no_network(tmp_path: Path) -> None:
    """In a network of its own that has no name service and reaches nobody."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    alone = ["unshare", "--net", *user, "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    probe = subprocess.run([*alone, "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip(f"no network namespaces here: {probe.stderr.decode().strip()}")
    command = [sys.executable, "-m", "tests.reliability.alone", str(tmp_path)]
    root = Path(__file__).parents[2]
    run = subprocess.run([*alone, *command], cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith("answered\n")


def test_H11_secrets_are_never_shown(
    make_canary: MakeCanary, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"SIMPLESEG_{name}" for name in ("API_KEYS", "UPSTREAM_API_KEY", "LABEL_STUDIO_TOKEN")]
    for arguments in (["serve", "--help"], ["--version"], ["--help"]):
        assert SECRET not in command(arguments, dict.fromkeys(names, SECRET))[1]
    settings = Settings(api_keys=(SecretStr(SECRET),), upstream_api_key=(SecretStr(SECRET),))
    assert SECRET not in f"{settings} {settings!r} {settings.model_dump_json()}"
    for name in names:
        monkeypatch.delenv(name)
    with make_canary() as canary:
        for path in ("/version", "/openapi.json", "/docs", "/v1/models", "/metrics", "/"):
            assert canary.client.get(path).status_code == 200
        limits = Path(f"/proc/{canary.process.pid}/limits").read_text()
        [core] = [line for line in limits.splitlines() if line.startswith("Max core file size")]
        assert core.split()[4:6] == ["0", "0"]


def test_H11_children_have_no_secrets(tmp_path: Path) -> None:
    """Not even in their environment, which the system shows to whoever runs the server."""
    with demo_server(tmp_path / "log", api_keys=SECRET, supervise="true") as (process, _):
        shown = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) > 2, "the engine's, the decoders', and those that begin them"
        for child in children:
            for name in ("environ", "cmdline"):
                shown += Path(f"/proc/{child.pid}/{name}").read_bytes()
    assert SECRET.encode() not in shown
