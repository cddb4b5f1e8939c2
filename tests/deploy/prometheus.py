"""A real Prometheus that scrapes a server of ours."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ..server.processes import status_of, wait_for

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed"
)
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed"
)

_CONFIG = """
global: {scrape_interval: 1s, scrape_timeout: 1s}
scrape_configs:
  - job_name: simpleseg
    static_configs: [{targets: ["TARGET"]}]
"""


class Prometheus:
    def __init__(self, http: httpx2.Client) -> None:
        self._http = http

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series of an instant query. AssertionError where it cannot be read."""
        answer = self._http.get("/api/v1/query", params={"query": expr}).json()
        assert answer["status"] == "success", (expr, answer.get("error"))
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def values(self, expr: str) -> list[float]:
        return [float(series["value"][1]) for series in self.query(expr)]


@contextmanager
def scraping(url: str, folder: Path) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the server every second, as job ``simpleseg``."""
    config = folder / "prometheus.yml"
    config.write_text(_CONFIG.replace("TARGET", url.removeprefix("http://")))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    options = {
        "config.file": config,
        "storage.tsdb.path": folder / "data",
        "web.listen-address": address,
        "log.level": "error",
    }
    command = ["prometheus", *(f"--{name}={value}" for name, value in options.items())]
    process = subprocess.Popen(command, cwd=folder)
    try:
        wait_for(lambda: process.poll() is not None or _is_ready(address))
        with httpx2.Client(base_url=f"http://{address}", timeout=20) as http:
            yield Prometheus(http)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()


def _is_ready(address: str) -> bool:
    return status_of(f"http://{address}/-/ready") == 200
