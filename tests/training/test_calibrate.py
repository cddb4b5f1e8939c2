"""Scores that mean what they say: fitted on one half of known answers, measured on the other."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simpleseg_polygon.confidence import Calibration, Evidence
from simpleseg_training.calibrate import Scored, as_dict, fit, reliability, write_diagram
from simpleseg_training.model_card import calibration_of

TRUTH = Calibration(1.0, 0.5, 0.3, 1.5, 0.2, bias=2.5)


def drawn(count: int, seed: int) -> list[Scored]:
    """Answers whose IoU is 1 with the probability that TRUTH expects, else 0."""
    rng = np.random.default_rng(seed)
    found = [Evidence(*(-rng.exponential(0.6, 5))) for _ in range(count)]
    return [Scored(one, float(rng.random() < TRUTH.expected_iou(one))) for one in found]


def test_the_fit_finds_the_truth() -> None:
    calibration = fit(drawn(4000, 0))
    for name, value in as_dict(TRUTH).items():
        assert as_dict(calibration)[name] == pytest.approx(value, abs=0.35)
    assert Calibration.from_dict(as_dict(calibration)).bias == round(calibration.bias, 4)


def test_a_fitted_score_is_reliable_and_a_wrong_one_is_not() -> None:
    held_out = drawn(2000, 1)
    fitted = reliability(fit(drawn(2000, 0)), held_out)
    assert fitted.error < 0.05
    assert fitted.correlation > 0.3
    assert sum(fitted.counts) == 2000
    assert list(fitted.expected) == sorted(fitted.expected)
    overconfident = Calibration(0.0, 0.0, 0.0, 0.0, 0.0, bias=4.0)
    measured = reliability(overconfident, held_out)
    assert measured.error > 0.2
    assert measured.correlation == 0


def test_evidence_that_never_varies_is_no_obstacle() -> None:
    same = Evidence(-0.5, -0.5, -0.5, -0.5, 0.0)
    calibration = fit([Scored(same, 0.25), Scored(same, 0.75)] * 50)
    assert calibration.expected_iou(same) == pytest.approx(0.5, abs=0.01)


def test_too_few_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        fit([])


def test_the_diagram_is_a_picture(tmp_path: Path) -> None:
    write_diagram(reliability(TRUTH, drawn(200, 2)), tmp_path / "reliability.png")
    with Image.open(tmp_path / "reliability.png") as picture:
        assert min(picture.size) > 300


def test_the_card_says_how_many_answers_had_a_score() -> None:
    found = {"error": 0.04, "correlation": 0.5}
    card = calibration_of({"region": {"n": 996, **found}, "box": {"n": 1000, **found}})
    assert "| region | 996 | 0.040 | 0.50 |" in card
    assert "is not there has no score" in card
