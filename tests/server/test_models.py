"""Several models in one server: a checkpoint, and adapters that change it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from simpleseg_polygon.confidence import Calibration
from simpleseg_polygon.prompts import Target

from .asking import answer, post, refusal
from .chatting import complete, user
from .conftest import CAPABILITIES, PhraseEngine

CALIBRATIONS: dict[Target, Calibration] = {"region": Calibration(0.5, 1.0, 0.0, 1.5, 0.0, bias=2.0)}


@pytest.fixture
def engine() -> PhraseEngine:
    capabilities = replace(CAPABILITIES, adapters=("birds", "cars"), calibrations=CALIBRATIONS)
    return PhraseEngine(capabilities)


@pytest.fixture
def client(engine: PhraseEngine, make_client: Any) -> Iterator[Any]:
    with make_client(engine) as client:
        yield client


def test_every_model_is_listed(client: Any) -> None:
    listed = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["scripted-model", "birds", "cars"]
    assert [model.get("parent") for model in listed] == [None, "scripted-model", "scripted-model"]
    assert client.get("/v1/models/cars").json() == listed[2]
    assert client.get("/v1/models/dogs").status_code == 404


@pytest.mark.parametrize(
    ("model", "adapter"), [(None, None), ("scripted-model", None), ("birds", "birds")]
)
def test_a_request_names_its_model(
    client: Any, engine: PhraseEngine, image64: str, model: str | None, adapter: str | None
) -> None:
    named = {} if model is None else {"model": model}
    body = answer(client, image=image64, prompt="x", **named)
    assert body["model"] == (model or "scripted-model")
    assert engine.requests[-1].adapter == adapter
    # Nobody has calibrated an adapter.
    is_calibrated = body["results"][0]["score_type"] == "expected_iou"
    assert is_calibrated == (adapter is None)


def test_a_chat_names_its_model(client: Any, engine: PhraseEngine, image64: str) -> None:
    assert complete(client, user(image64), model="cars")["model"] == "cars"
    assert engine.requests[-1].adapter == "cars"


def test_an_unknown_model_is_refused(client: Any, image64: str) -> None:
    response = post(client, image=image64, prompt="x", model="dogs")
    assert refusal(response) == (404, "model_not_found", "model")
