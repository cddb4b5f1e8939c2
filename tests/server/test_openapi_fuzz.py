"""schemathesis against a real server: requests made from the OpenAPI document, and from its
negation, are answered as the document says."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ..times import TIMES
from .processes import demo_server, scripted_server

HERE = Path(__file__).parent
KEY = {"X-API-Key": "k"}


def fuzz(url: str, *options: str) -> int:
    """The number of cases that were sent; fails with the report where one was answered wrongly."""
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml"]
    command += ["run", f"{url}/openapi.json", "-H", "X-API-Key: k", "--no-color", *options]
    run = subprocess.run(
        command, cwd=HERE / "contract", capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    found = re.search(r"(\d+) generated", run.stdout)
    assert found is not None
    return int(found[1])


def answered(url: str) -> dict[str, set[str]]:
    """The statuses that each route has answered with."""
    text = httpx2.get(f"{url}/metrics", headers=KEY).text
    statuses: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "simpleseg_requests_total":
                statuses.setdefault(sample.labels["route"], set()).add(sample.labels["status"])
    return statuses


def check_that_every_route_answered(url: str) -> None:
    """The cases were not all refused: every documented route has also given what was asked for."""
    statuses = answered(url)
    document: Any = httpx2.get(f"{url}/openapi.json", headers=KEY).json()
    for path in document["paths"]:
        route = path.replace("{model_id}", "{model_id:path}")
        assert "200" in statuses[route], (route, statuses[route])
    # Any other status of a server's fault is a failure of the case itself; 503 was the start.
    assert not [status for found in statuses.values() for status in found if status == "500"]


def test_a_server_answers_as_its_document_says(tmp_path: Path) -> None:
    with scripted_server(tmp_path / "log", api_keys="k") as (_, (url,)):
        cases = fuzz(url, "--generation-deterministic", "--max-examples", "10")
        assert cases > 800
        check_that_every_route_answered(url)


@pytest.mark.slow
def test_five_thousand_cases(tmp_path: Path) -> None:
    with scripted_server(tmp_path / "log", api_keys="k") as (_, (url,)):
        options = ("--max-examples", f"{900 * TIMES}", "--phases", "examples,coverage,fuzzing")
        cases = fuzz(url, *options)
        cases += fuzz(url, "--max-examples", f"{100 * TIMES}", "--phases", "stateful")
        print(f"{cases} cases")
        assert cases >= 5000 * TIMES
        check_that_every_route_answered(url)


SHORT = {
    "default_max_tokens": "64",
    "max_tokens": "128",
    "max_prompts": "3",
    "max_batch_requests": "3",
    "max_deadline_ms": "45000",
}
"""Limits under which the real model is asked thousands of times in minutes, not hours."""


@pytest.mark.slow
def test_five_thousand_cases_on_the_demo_model(tmp_path: Path) -> None:
    """``make fuzz-api``; ``-s`` shows the count."""
    with demo_server(tmp_path / "log", api_keys="k", **SHORT) as (_, (url,)):
        options = ("--max-examples", f"{900 * TIMES}", "--phases", "examples,coverage,fuzzing")
        cases = fuzz(url, *options, "--workers", "4")
        print(f"{cases} cases, answered with {answered(url)}")
        assert cases >= 5000 * TIMES
        check_that_every_route_answered(url)
