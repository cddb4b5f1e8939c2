"""What a stream tells is what the answer holds, whatever engine writes it."""

import base64
import io
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from simpleseg_server.app import create_app
from simpleseg_server.config import Settings
from simpleseg_server.engines.base import Engine
from simpleseg_server.engines.remote import RemoteEngine
from simpleseg_server.engines.scripted import Reply, ScriptedEngine
from simpleseg_server.engines.transformers import TransformersEngine
from simpleseg_server.engines.vllm import VllmEngine
from simpleseg_server.engines.vllm_backend import VllmOptions

from ..processes import wait_for
from ..test_stream import TWO_PARTS, joined_polygons, read_events
from .conftest import IMAGE_PX
from .fake_upstream import FakeUpstream, Plan
from .remote_support import options
from .support import DEMO_MODEL, IMAGES
from .vllm_process import VllmProcess

TEXTS = (
    TWO_PARTS,
    "[].",
    "[[[0.1, 0.1], [0.9, 0.9]], [[0.5, 0.5], [0.6, 0.5], [0.6, 0.6]]].",
    "[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9], [0.4, 0.",
    "well",
)
FIRST_POINT = "simpleseg_time_to_first_point_seconds_count"


def text_for(instruction: str) -> str:
    return TEXTS[len(instruction) % len(TEXTS)]


@contextmanager
def _engine(name: str, checkpoint: Path, log: Path) -> Iterator[Engine]:
    if name == "scripted":
        yield ScriptedEngine(lambda asked: Reply(text_for(asked.instruction), token_length=3))
    elif name == "demo":
        yield TransformersEngine(DEMO_MODEL)
    elif name == "embedded":
        yield TransformersEngine(checkpoint, num_threads=1)
    elif name == "remote":
        with closing(FakeUpstream(lambda asked: Plan(text_for(asked.instruction)))) as upstream:
            yield RemoteEngine(options(upstream))
    elif name == "remote-vllm":
        with closing(VllmProcess(checkpoint, log, image_px=IMAGE_PX)) as upstream:
            upstream.start()
            yield RemoteEngine(options(upstream, input_hw=(IMAGE_PX, IMAGE_PX)))
    else:
        yield VllmEngine(checkpoint, VllmOptions(dtype="float32"))


@pytest.fixture(
    scope="module",
    params=[
        "scripted",
        "demo",
        "embedded",
        "remote",
        pytest.param("vllm", marks=pytest.mark.vllm),
        pytest.param("remote-vllm", marks=pytest.mark.vllm),
    ],
)
def client(
    request: pytest.FixtureRequest,
    qwen3_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[TestClient]:
    log = tmp_path_factory.mktemp("upstream") / "log"
    with (
        _engine(request.param, qwen3_checkpoint, log) as engine,
        TestClient(create_app(Settings(), engine)) as client,
    ):
        wait_for(lambda: client.get("/readyz").status_code == 200)
        yield client


def _png(index: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(IMAGES[index]).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


PNGS = [_png(index) for index in range(len(IMAGES))]
QUESTIONS = st.fixed_dictionaries(
    {
        "image": st.sampled_from(PNGS),
        "prompts": st.lists(
            st.sampled_from(["a cat", "the dog", "it", "red"]), min_size=1, max_size=3
        ),
        "max_points": st.integers(3, 12),
        "coordinates": st.sampled_from(["normalized", "pixel"]),
        "temperature": st.sampled_from([0.0, 1.0]),
        "seed": st.integers(0, 9),
    }
)


WAYS = st.sampled_from(
    [
        {},
        {"simplify": 0.03, "coordinates": "normalized"},
        {"refine": True},
        {"samples": 3, "temperature": 1.0},
        {"samples": 2, "temperature": 1.0, "refine": True},
    ]
)


def first_points(client: TestClient) -> float:
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = [s for family in families for s in family.samples if s.name == FIRST_POINT]
    return float(samples[0].value)


@given(QUESTIONS, WAYS)
@settings(max_examples=16, deadline=None, derandomize=True)
def test_deltas_join_to_the_final_polygons(
    client: TestClient, question: dict[str, Any], way: dict[str, Any]
) -> None:
    before = first_points(client)
    response = client.post("/segment", json={**question, **way, "stream": True})
    assert response.status_code == 200, response.text
    events = read_events(response.text)
    answer = events[-1][1]["response"]
    for result in answer["results"]:
        assert joined_polygons(events, result["index"]) == result["polygons"]
    ends = [data["n_points"] for name, data in events if name == "segmentation.polygon.done"]
    assert sorted(ends) == sorted(len(p) for r in answer["results"] for p in r["polygons"])
    has_points = any(result["polygons"] for result in answer["results"])
    timings = answer["timings_ms"]
    # Of several answers another one than the chosen may have points.
    has_first = has_points if not way else "first_point" in timings
    assert has_first or not has_points
    assert ("first_point" in timings) == has_first
    assert first_points(client) - before == has_first
    if has_points:
        assert timings["first_token"] <= timings["first_point"] <= timings["total"]
