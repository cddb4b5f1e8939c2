"""Metrics: all of the documented ones, in good form, in a bounded number of series."""

import base64
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as strict_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families

from simpleseg_polygon.grammar import fingerprint
from simpleseg_server.engines.scripted import Reply
from simpleseg_server.telemetry import STAGES, Metrics

DOCUMENTED = {
    "simpleseg_requests": "counter",
    "simpleseg_request_duration_seconds": "histogram",
    "simpleseg_stage_duration_seconds": "histogram",
    "simpleseg_time_to_first_point_seconds": "histogram",
    "simpleseg_polygon_points": "histogram",
    "simpleseg_polygons_per_result": "histogram",
    "simpleseg_completion_tokens": "histogram",
    "simpleseg_parse": "counter",
    "simpleseg_rejections": "counter",
    "simpleseg_image_fetch": "counter",
    "simpleseg_image_cache": "counter",
    "simpleseg_decoded_image_cache": "counter",
    "simpleseg_in_flight": "gauge",
    "simpleseg_queue_depth": "gauge",
    "simpleseg_client_disconnects": "counter",
    "simpleseg_build_info": "gauge",
}
SCENE = Path(__file__).parents[2] / "examples/images/scene-04.png"
PEERS_STAGES = [
    "fetch",
    "decode_image",
    "preprocess",
    "queue",
    "ttft",
    "generate",
    "parse",
    "rasterize",
    "encode",
]


def families(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(text: str, name: str, **labels: str) -> float:
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    found = [s.value for s in samples if s.name == name and labels.items() <= s.labels.items()]
    return sum(found)


@pytest.fixture
def used(client: Any, engine: Any, image64: str) -> Any:
    """A server that has answered, refused and failed."""
    engine.replies = {
        "ghost": Reply("[]"),
        "babble": Reply("well"),
        "two": Reply("[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]], [[0.1, 0.1]]]."),
        "cut": Reply("[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]", finish_reason="length"),
    }
    for prompt in ("dog", "ghost", "babble", "two", "cut"):
        assert client.post("/segment", json={"image": image64, "prompt": prompt}).status_code == 200
    assert client.post("/segment", json={"image": "!", "prompt": "x"}).status_code == 400
    assert client.get("/nope").status_code == 404
    return client


def test_every_documented_metric_is_there_before_anything_happened(client: Any) -> None:
    found = families(client.get("/metrics").text)
    for name, kind in DOCUMENTED.items():
        assert found[name].type == kind
        assert found[name].documentation.endswith(".")


def test_the_text_passes_strict_parsers(used: Any) -> None:
    text = used.get("/metrics").text
    assert families(text).keys() > DOCUMENTED.keys()
    metrics: Metrics = used.app.state.services.metrics
    exposed = openmetrics(metrics.registry).decode()  # type: ignore[no-untyped-call]
    parsed = list(strict_openmetrics(exposed))  # type: ignore[no-untyped-call]
    assert {family.name for family in parsed} >= {"simpleseg_parse", "simpleseg_requests"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_has_nothing_to_say(used: Any) -> None:
    assert promtool(used.get("/metrics").text) == (0, "")


def test_what_was_answered_is_counted_by_outcome(used: Any) -> None:
    text = used.get("/metrics").text
    for outcome in ("ok", "empty", "invalid", "recovered", "truncated"):
        assert value(text, "simpleseg_parse_total", outcome=outcome) == 1, outcome
    labels = {"route": "/segment", "model": "scripted-model"}
    ok = {"status": "200", "outcome": "ok"}
    assert value(text, "simpleseg_requests_total", **labels, **ok) == 5
    refused = {"status": "400", "outcome": "rejected"}
    assert value(text, "simpleseg_requests_total", **labels, **refused) == 1
    assert value(text, "simpleseg_completion_tokens_count") == 5
    assert value(text, "simpleseg_polygon_points_sum") == 9
    assert value(text, "simpleseg_time_to_first_point_seconds_count") == 3


@pytest.mark.parametrize("path", ["/segment", "/v1/segment/batch"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_region_counts_whatever_is_shown_of_it(
    client: Any, image64: str, path: str, stream: bool
) -> None:
    asked: dict[str, Any] = {"image": image64, "prompt": "x", "return": ["bbox", "rle"]}
    body = {"requests": [asked]} if "batch" in path else {**asked, "stream": stream}
    assert client.post(path, json=body).status_code == 200
    text = client.get("/metrics").text
    assert value(text, "simpleseg_polygon_points_sum") == 3
    assert value(text, "simpleseg_polygons_per_result_sum") == 1


def test_every_stage_is_there_and_those_that_ran_have_counts(used: Any) -> None:
    text = used.get("/metrics").text
    stages = {
        sample.labels["stage"]
        for sample in families(text)["simpleseg_stage_duration_seconds"].samples
    }
    assert set(PEERS_STAGES) <= stages == set(STAGES)
    name = "simpleseg_stage_duration_seconds_count"
    for stage in ("decode_image", "preprocess", "queue", "ttft", "generate", "parse", "encode"):
        assert value(text, name, stage=stage) == 5, stage
    assert value(text, name, stage="read_body") == 6


def test_kept_images_count_hits_and_misses(client: Any, image64: str) -> None:
    kept = client.post("/v1/images", json={"image": image64}).json()["id"]
    for name, status in ((kept, 200), (kept, 200), ("img_0", 404)):
        body = {"image": {"id": name}, "prompt": "x"}
        assert client.post("/segment", json=body).status_code == status
    text = client.get("/metrics").text
    assert value(text, "simpleseg_image_cache_total", outcome="hit") == 2
    assert value(text, "simpleseg_image_cache_total", outcome="miss") == 1


def test_the_build_is_described(used: Any) -> None:
    text = used.get("/metrics").text
    info = {"model": "scripted-model", "engine": "scripted", "grammar": fingerprint()}
    assert value(text, "simpleseg_build_info", **info) == 1


def test_in_flight_and_the_queue_are_gauges_that_return_to_zero(used: Any) -> None:
    text = used.get("/metrics").text
    assert value(text, "simpleseg_in_flight") == value(text, "simpleseg_queue_depth") == 0


def test_clients_cannot_grow_the_number_of_series(used: Any, image64: str) -> None:
    """Hostile paths, methods, models, ids, fields, types and tasks add none after the first."""

    def storm(index: int) -> None:
        body: dict[str, Any] = {"image": image64, "prompt": f"p{index}", "model": f"m{index}"}
        headers = {"X-Request-Id": f"id-{index}", "User-Agent": f"agent-{index}"}
        used.post("/segment", json=body, headers=headers)
        used.post("/segment", json={f"field{index}": 1})
        used.post("/segment", json={"image": image64, "prompt": "x", "task": f"t{index}"})
        used.post("/segment", content=b"x", headers={"Content-Type": f"a/b{index}"})
        used.request(f"M{index}", f"/path/{index}?q={index}")
        used.get(f"/v1/models/{index}", headers={"Authorization": f"Bearer {index}"})

    def series() -> set[str]:
        lines = used.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}

    storm(0)
    series()  # the scrape has series of its own
    before = series()
    for index in range(1, 30):
        storm(index)
    assert series() == before
    assert len(before) < 500


def test_the_timings_are_on_every_answer(used: Any, image64: str) -> None:
    answer = used.post("/segment", json={"image": image64, "prompt": "dog"})
    timing = dict(re.findall(r"(\w+);dur=([\d.e-]+)", answer.headers["server-timing"]))
    assert timing.keys() == answer.json()["timings_ms"].keys() | {"encode"}
    assert float(timing["total"]) >= float(timing["generate"])
    for path in ("/livez", "/nope", "/metrics"):
        assert re.fullmatch(r"total;dur=[\d.e-]+", used.get(path).headers["server-timing"])


# How each documented metric is moved: by one request, answered on the shipped model or refused.
MOVED_BY_A_STREAM = (
    "simpleseg_requests_total",
    "simpleseg_request_duration_seconds_count",
    "simpleseg_time_to_first_point_seconds_count",
    "simpleseg_polygon_points_count",
    "simpleseg_polygons_per_result_count",
    "simpleseg_completion_tokens_count",
    "simpleseg_forward_passes_count",
    "simpleseg_tokens_per_step_count",
    "simpleseg_draft_tokens_total",
    "simpleseg_parse_total",
    *(
        f'simpleseg_stage_duration_seconds_count{{stage="{stage}"}}'
        for stage in PEERS_STAGES
        if stage not in ("fetch", "rasterize", "encode")
    ),
)


MASK: dict[str, Any] = {"return": ["rle"]}


def samples(text: str) -> dict[str, float]:
    """The value of every series, by the line that names it."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def moved(url: str, ask: Callable[[], Any]) -> set[str]:
    before = samples(httpx2.get(f"{url}/metrics").text)
    ask()
    after = samples(httpx2.get(f"{url}/metrics").text)
    return {name for name, value in after.items() if value > before.get(name, 0)}


def test_a_request_moves_every_metric_that_is_documented(demo_url: str) -> None:
    image = base64.b64encode(SCENE.read_bytes()).decode()

    def post(path: str = "/segment", **fields: Any) -> Any:
        return httpx2.post(f"{demo_url}{path}", json={"image": image, **fields}, timeout=60)

    by_stream = moved(demo_url, lambda: post(prompt="the hexagon", stream=True))
    assert any('route="/segment"' in name for name in by_stream)
    for name in MOVED_BY_A_STREAM:
        assert any(one.startswith(name) for one in by_stream), name
    by_mask = moved(demo_url, lambda: post(prompt="the hexagon", **MASK))
    for stage in ("rasterize", "encode"):
        assert f'simpleseg_stage_duration_seconds_count{{stage="{stage}"}}' in by_mask
    refused = moved(demo_url, lambda: post(prompt=""))
    assert 'simpleseg_rejections_total{reason="prompt_empty"}' in refused
    kept = post("/v1/images").json()["id"]
    by_id = moved(demo_url, lambda: post(image={"id": kept}, prompt="the hexagon"))
    assert 'simpleseg_image_cache_total{outcome="hit"}' in by_id


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_passes_a_scrape_of_a_real_server(demo_url: str) -> None:
    image = base64.b64encode(SCENE.read_bytes()).decode()
    for prompt in ("the hexagon", ""):
        httpx2.post(f"{demo_url}/segment", json={"image": image, "prompt": prompt}, timeout=60)
    text = httpx2.get(f"{demo_url}/metrics").text
    assert 'engine="transformers"' in text
    assert promtool(text) == (0, "")


def promtool(text: str) -> tuple[int, str]:
    """The exit status of ``promtool check metrics`` and what it says."""
    command = ["promtool", "check", "metrics"]
    run = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    return run.returncode, run.stdout + run.stderr
