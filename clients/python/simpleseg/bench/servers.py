"""The server under load: one of this program's own, in another process, and what any one is."""

import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import httpx2

from simpleseg.protocol import MODELS_PATH, READY_PATH

_START_S = 600.0
_POLL_S = 0.1
_TERMINATED = 128 + signal.SIGTERM  # as a shell has it
_TOLD = re.compile(r"listening on (https?://[^\s\"]+)")


class ServerError(Exception):
    """There is no server to measure; the message is for the user."""


@contextmanager
def own_server(options: Sequence[str]) -> Generator[str]:
    """The URL of `simpleseg serve` with ``options``, ready, as long as the block lasts.

    It is a process of its own, so that the generator's work does not hold its work up. For the
    main thread, since it ends the server on SIGTERM too. Raises ServerError with the log's end
    where it does not start.
    """
    command = [sys.executable, "-m", "simpleseg.cli", "serve"]
    command += ["--host", "127.0.0.1", "--port", "0", *options]
    with tempfile.TemporaryDirectory(prefix="simpleseg-bench-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as stream:
            process = subprocess.Popen(command, stderr=stream)
        # A signal that ends this program must not leave the server behind.
        before = signal.signal(signal.SIGTERM, _end)
        try:
            yield _ready(process, log)
        finally:
            process.terminate()
            process.wait(60)
            signal.signal(signal.SIGTERM, before)


def _end(*_: object) -> None:
    sys.exit(_TERMINATED)


def _ready(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        told = _TOLD.search(log.read_text(errors="replace"))
        if told is not None and _answers(told[1] + READY_PATH):
            return told[1]
        time.sleep(_POLL_S)
    raise ServerError(f"the server did not start:\n{log.read_text(errors='replace')[-2000:]}")


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=10).status_code == 200
    except httpx2.TransportError:
        return False


def identity(base_url: str, api_key: str | None) -> dict[str, Any]:
    """What the server says that it is: ours its version, model, engine and grammar, others the
    first of their models. Raises ServerError where nobody answers."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        with httpx2.Client(base_url=base_url, headers=headers, timeout=10) as http:
            told = _object(http.get("/version"))
            models: Any = _object(http.get(MODELS_PATH)).get("data") or [{}]
    except httpx2.TransportError as error:
        raise ServerError(f"no server answers at {base_url}") from error
    return {"model": models[0].get("id"), **told}


def _object(response: httpx2.Response) -> dict[str, Any]:
    try:
        content: Any = response.json()
    except ValueError:
        return {}
    if not response.is_success or not isinstance(content, dict):
        return {}
    return cast(dict[str, Any], content)
