"""Dashboard, alerts and Prometheus's configuration, by a real Prometheus that scrapes a server with
the shipped model."""

import base64
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from ..server.processes import demo_server
from .prometheus import Prometheus, needs_prometheus, needs_promtool, scraping

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana/simpleseg.json").read_text())
ALERTS: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text())
ADAPTER: dict[str, Any] = yaml.safe_load(
    (DEPLOY / "kubernetes/prometheus-adapter-values.yaml").read_text()
)
SCENE = ROOT / "examples/images/scene-04.png"

OFTEN_ZERO = {
    "Prompts waiting",
    "Requests not served",
    "Queue",
    "Restarts in an hour",
    "Clients that hung up",
}


def _exprs() -> dict[str, str]:
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        .replace("$__rate_interval", "20s")
        .replace("$instance", ".+")
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    }


def _rules() -> list[dict[str, Any]]:
    return [rule for group in ALERTS["groups"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Prometheus]]:
    """A server, and the Prometheus that scrapes its listener for operations."""
    folder = tmp_path_factory.mktemp("watched")
    with (
        demo_server(folder / "log", ops_port="0") as (_, (url, ops)),
        scraping(ops, folder) as prometheus,
    ):
        yield url, prometheus


def _use(url: str) -> None:
    """Answers of every kind that the dashboard shows, and a refusal."""
    image = base64.b64encode(SCENE.read_bytes()).decode()
    for prompt, status in (("the hexagon", 200), ("the hexagon", 200), ("", 422)):
        body = {"image": image, "prompt": prompt}
        assert httpx2.post(f"{url}/segment", json=body, timeout=120).status_code == status
    streamed = {"image": image, "prompt": "the hexagon", "stream": True}
    assert httpx2.post(f"{url}/segment", json=streamed, timeout=120).status_code == 200


@needs_prometheus
def test_every_panel_shows_data(watched: tuple[str, Prometheus]) -> None:
    url, prometheus = watched
    deadline = time.monotonic() + 240
    empty = _exprs()
    assert len(empty) >= 25
    while empty and time.monotonic() < deadline:
        _use(url)
        time.sleep(1)
        empty = {name: expr for name, expr in empty.items() if not _shows(prometheus, name, expr)}
    assert empty == {}


def _shows(prometheus: Prometheus, name: str, expr: str) -> bool:
    """Whether there is a number, and one above 0 where a server at work has none that is 0."""
    values = [value for value in prometheus.values(expr) if math.isfinite(value)]
    return bool(values) if name[:-2] in OFTEN_ZERO else any(value > 0 for value in values)


@needs_prometheus
def test_alerts_and_the_autoscaler_ask_for_what_is_there(
    watched: tuple[str, Prometheus],
) -> None:
    url, prometheus = watched
    _use(url)
    time.sleep(3)
    asked = {name for rule in _rules() for name in _metrics(rule["expr"])}
    assert asked >= {"up", "simpleseg_queue_depth", "simpleseg_parse_total"}
    assert {name for name in asked if not prometheus.query(name)} == set()
    for rule in _rules():
        assert prometheus.query(rule["expr"]) == [], rule["alert"]
    (custom,) = ADAPTER["rules"]["custom"]
    query = custom["metricsQuery"].replace("<<.Series>>", "simpleseg_queue_depth")
    query = query.replace("<<.GroupBy>>", "instance").replace(
        "<<.LabelMatchers>>", 'job="simpleseg"'
    )
    assert prometheus.values(query) == [pytest.approx(0, abs=8)]


def _metrics(expr: str) -> list[str]:
    return re.findall(r"\b(?:simpleseg|process)_\w+|\bup\b", expr)


def test_the_dashboard_is_what_its_script_prints() -> None:
    command = [sys.executable, str(DEPLOY / "scripts/dashboard.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (DEPLOY / "grafana/simpleseg.json").read_text() == printed


def test_the_dashboard_keeps_to_grafana_s_schema() -> None:
    """Grafana's own models take it in whole: what they do not know would be lost on the way."""
    plugins.register_default_plugins()
    read = JSONEncoder(sort_keys=True).encode(Dashboard.from_json(DASHBOARD))
    assert list(_lost(DASHBOARD, json.loads(read))) == []


def _lost(given: Any, read: Any, path: str = "") -> Iterator[str]:
    if isinstance(given, dict):
        for key, value in given.items():
            yield from _lost(value, read.get(key), f"{path}/{key}")
    elif isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        for i, (one, other) in enumerate(zip(given, read, strict=True)):
            yield from _lost(one, other, f"{path}/{i}")
    elif given != read:
        yield f"{path}: {given!r} is {read!r}"


def test_panels_stand_side_by_side() -> None:
    covered: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & covered, panel["title"]
        assert max(x for x, _ in cells) < 24
        covered |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@needs_promtool
def test_alerts_fire_when_they_should() -> None:
    run = _promtool("test", "rules", "alerts.test.yaml")
    assert run.returncode == 0, run.stdout + run.stderr


@needs_promtool
def test_prometheus_takes_its_configuration() -> None:
    run = _promtool("check", "config", "prometheus.yml")
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{len(_rules())} rules" in run.stdout


def test_every_alert_is_tested_to_fire_and_not_to() -> None:
    tests = yaml.safe_load((DEPLOY / "prometheus/alerts.test.yaml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    names = {rule["alert"] for rule in _rules()}
    assert {case["alertname"] for case in cases if "exp_alerts" in case} == names
    assert {case["alertname"] for case in cases if "exp_alerts" not in case} == names


def _promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    folder = DEPLOY / "prometheus"
    command = ["promtool", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
