"""A deadline with the embedded engine behind ``/segment``; ``test_vllm_servers.py`` has vLLM's."""

import base64
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from simpleseg_server.app import create_app
from simpleseg_server.config import Settings
from simpleseg_server.engines.transformers import TransformersEngine

from .support import IMAGES, assert_begins, cut_midway, decoder_of

LONG: dict[str, Any] = {"prompt": "the thing", "max_tokens": 1200}


@pytest.fixture
def engine(qwen3_checkpoint: Path) -> TransformersEngine:
    return TransformersEngine(qwen3_checkpoint, num_threads=1)


@pytest.fixture
def client(engine: TransformersEngine) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(), engine)) as client:
        end = time.monotonic() + 60
        while client.get("/readyz").status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.05)
        yield client


def segment(client: TestClient, **fields: Any) -> Any:
    buffer = io.BytesIO()
    Image.fromarray(IMAGES[0]).save(buffer, "PNG")
    image = base64.b64encode(buffer.getvalue()).decode()
    response = client.post("/segment", json={"image": image} | LONG | fields)
    assert response.status_code == 200, response.text
    return response.json()


def test_a_deadline_frees_the_slot_and_keeps_what_is_whole(
    client: TestClient, engine: TransformersEngine
) -> None:
    segment(client)  # the first takes longer
    whole = segment(client)
    took_ms = whole["timings_ms"]["generate"]
    cut = cut_midway(lambda deadline_ms: segment(client, deadline_ms=deadline_ms), took_ms)
    [result] = cut["results"]
    assert (result["status"], result["finish_reason"]) == ("truncated", "deadline")
    assert 0 < cut["usage"]["completion_tokens"] < whole["usage"]["completion_tokens"]
    assert_begins(result["polygons"], whole["results"][0]["polygons"])
    end = time.monotonic() + 10
    while decoder_of(engine).running:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert "simpleseg_in_flight 0.0" in client.get("/metrics").text


def test_drafts_are_counted_to_the_token(client: TestClient) -> None:
    """Every token is written by a step, was a right draft, or follows from the grammar alone."""
    usage = segment(client)["usage"]
    drafts = usage["drafts"]
    assert drafts.keys() == {"digits", "structure"}
    accepted = sum(kind["accepted"] for kind in drafts.values())
    assert accepted > drafts["digits"]["accepted"] > 0
    assert usage["forward_passes"] + 1 + accepted <= usage["completion_tokens"]
    text = client.get("/metrics").text
    assert 'simpleseg_draft_tokens_total{kind="digits",outcome="accepted"} ' in text
