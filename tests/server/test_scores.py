"""What a result tells of its own quality, and what else a request may ask to be told."""

import math
from dataclasses import replace
from typing import Any

import pytest

from simpleseg_polygon.confidence import Calibration
from simpleseg_server.engines.base import TokenLogprob
from simpleseg_server.engines.scripted import Reply
from simpleseg_server.scores import score_of, scores_of

from .asking import answer, post, refusal
from .conftest import CAPABILITIES, TRIANGLE, PhraseEngine

WEIGHTS = Calibration(0.5, 1.0, 0.0, 1.5, 0.0, bias=2.0)


def tokens(text: str, logprob: float) -> list[TokenLogprob]:
    return [TokenLogprob(character, logprob) for character in text]


def test_a_calibrated_score_is_the_expected_iou() -> None:
    score = score_of(tokens(TRIANGLE, -0.5), "region", {"region": WEIGHTS})
    assert score is not None
    assert score[0] == pytest.approx(1 / (1 + math.exp(-(2 - 0.5 * 3))), abs=1e-6)
    assert score[1] == "expected_iou"


def test_other_targets_keep_their_mean() -> None:
    found = score_of(tokens("[0.5, 0.25].", math.log(0.25)), "point", {"region": WEIGHTS})
    assert found == (0.25, "geometric_mean_coordinate_token_probability")


def test_no_probabilities_no_score() -> None:
    assert score_of([], "region", {"region": WEIGHTS}) is None
    assert scores_of(tokens("[].", -0.1)) is None


def test_a_calibrated_engine_scores_by_expected_iou(make_client: Any, image64: str) -> None:
    engine = PhraseEngine(replace(CAPABILITIES, calibrations={"region": WEIGHTS}))
    with make_client(engine) as client:
        (result,) = answer(client, image=image64, prompt="x")["results"]
    expected = 1 / (1 + math.exp(-(2 + 3 * math.log(0.5))))
    assert result["score_type"] == "expected_iou"
    assert result["score"] == pytest.approx(expected, abs=1e-6)


def test_what_is_included(client: Any, engine: Any, image64: str) -> None:
    engine.default = Reply(TRIANGLE, token_length=1, logprob=math.log(0.5))
    plain = answer(client, image=image64, prompt="x")
    assert "timings_ms" in plain
    assert not {"raw_text", "scores"} & plain["results"][0].keys()
    nothing = answer(client, image=image64, prompt="x", include=[])
    assert "timings_ms" not in nothing
    full = answer(client, image=image64, prompt="x", include=["raw_text", "scores"])
    (result,) = full["results"]
    assert result["raw_text"] == TRIANGLE
    assert result["scores"] == pytest.approx(dict.fromkeys(result["scores"], 0.5))
    assert len(result["scores"]) == 5
    assert "timings_ms" not in full
    response = post(client, image=image64, prompt="x", include=["logits"])
    assert refusal(response) == (422, "value_not_allowed", "include[0]")


def test_a_form_includes_by_commas(client: Any, png: bytes) -> None:
    fields = {"prompt": "x", "include": "raw_text,timings"}
    body = client.post("/segment", files={"image": png}, data=fields).json()
    assert "timings_ms" in body
    assert "raw_text" in body["results"][0]
