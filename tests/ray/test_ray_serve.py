"""The server on a real Ray Serve, with scripted engines."""

import importlib
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2
import pytest

pytestmark = pytest.mark.ray

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
UNDER_WAY = 6


@pytest.fixture(scope="module")
def tools() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("ray_cluster")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def url(tools: ModuleType) -> Iterator[str]:
    with tools.cluster(cpus=16) as address:
        yield address


def deploy(tools: ModuleType, revision: str, engines: int = 2, service_s: float = 0.2) -> None:
    from simpleseg_server.ray_serve.application import Plan

    settings = {"max_batch": UNDER_WAY, "playground": False}
    plan = Plan(settings=settings, min_engines=engines, max_engines=engines, revision=revision)
    tools.deploy(plan, tools.scripted(service_s, UNDER_WAY))


def mark(answer: Any) -> float:
    """Which replica gave the answer."""
    corner: float = answer.body["results"][0]["bbox"][0]
    return corner


def test_an_image_stays_with_a_replica_and_the_probes_answer(tools: ModuleType, url: str) -> None:
    deploy(tools, "affinity", engines=3, service_s=0.02)
    assert httpx2.get(f"{url}/readyz").json()["engine"] == "scripted"
    assert httpx2.get(f"{url}/livez").status_code == 200
    with tools.Load(url, tools.bodies(12), under_way=2) as load:
        load.wait_for(72)
    assert set(load.statuses) == {200}, load.answers
    replicas: dict[int, set[float]] = defaultdict(set)
    for answer in load.answers:
        replicas[answer.number].add(mark(answer))
    assert all(len(found) == 1 for found in replicas.values()), replicas
    assert len(set.union(*replicas.values())) > 1


def test_no_request_is_lost_when_a_replica_is_killed(tools: ModuleType, url: str) -> None:
    deploy(tools, "killed", engines=2)
    before = set(tools.pids_of("engines"))
    with tools.Load(url, tools.bodies(24), UNDER_WAY) as load:
        load.wait_for(2 * UNDER_WAY)
        killed = tools.kill_an_engine()
        load.wait_for(len(load.answers) + 8 * UNDER_WAY)
    assert load.lost == 0, load.statuses
    assert load.statuses[200] == len(load.answers)
    assert killed in before
    assert killed % 900 / 1000 in {mark(one) for one in load.answers}, "it had nothing to lose"


def test_no_request_is_lost_when_all_replicas_are_replaced(tools: ModuleType, url: str) -> None:
    deploy(tools, "old")
    old = {*tools.pids_of("engines"), *tools.pids_of("front-ends")}
    with tools.Load(url, tools.bodies(24), UNDER_WAY) as load:
        load.wait_for(2 * UNDER_WAY)
        deploy(tools, "new")
        load.wait_for(len(load.answers) + 2 * UNDER_WAY)
    assert load.lost == 0, load.statuses
    assert load.statuses[200] == len(load.answers)
    assert not old & {*tools.pids_of("engines"), *tools.pids_of("front-ends")}


def test_a_prompt_that_the_engine_refuses_is_refused_as_without_ray(
    tools: ModuleType, url: str
) -> None:
    deploy(tools, "refusals")
    refused = httpx2.post(f"{url}/segment", json={"image": {"base64": "AAAA"}, "prompts": ["x"]})
    assert refused.status_code == 415
    assert refused.json()["error"]["code"] == "image_type_unsupported"
