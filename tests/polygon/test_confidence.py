"""Evidence in token probabilities, for any way to cut numbers into tokens."""

import math
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simpleseg_polygon.confidence import Calibration, Evidence, evidence

DIGITS = [("[[", -0.1), ("[", 0.0), ("0", 0.0), (".", 0.0), ("1", -1.0), ("2", -2.0), (", ", 0.0)]
WEIGHTS = dict.fromkeys(Evidence.__dataclass_fields__, 1.0) | {"bias": 3.0}


def test_one_token_a_digit() -> None:
    found = evidence([*DIGITS, ("0", 0.0), (".", 0.0), ("7", -4.0), ("]", -0.3)])
    assert found is not None
    assert found.coordinate == pytest.approx(-7 / 3)
    assert found.leading == found.first_vertex == pytest.approx(-2.5)
    assert found.weakest == -4
    assert found.structure == pytest.approx(-0.4 / 8)


def test_three_digits_a_token() -> None:
    found = evidence([("[[0", 0.0), (".", 0.0), ("123", -1.5), (", 0.", 0.0), ("45", -0.5)])
    assert found is not None
    assert found.coordinate == found.leading == found.first_vertex == -1
    assert found.weakest == -1.5


def test_the_first_vertex_is_the_first_two_numbers() -> None:
    tokens = [
        pair for value in (-1.0, -3.0, -9.0) for pair in (("0.", 0.0), ("5", value), (" ", 0))
    ]
    found = evidence(tokens)
    assert found is not None
    assert found.first_vertex == -2


@pytest.mark.parametrize(
    "tokens", [[], [("[]", -0.5), (".", -0.1)], [("0.", 0.0), ("5", -math.inf)]]
)
def test_no_evidence(tokens: list[tuple[str, float]]) -> None:
    assert evidence(tokens) is None


@given(st.lists(st.tuples(st.text("[]., 0159", max_size=4), st.floats()), max_size=20))
@example([(".0", -sys.float_info.max), ("0", -sys.float_info.max)])
def test_any_tokens_give_evidence_in_range_or_none(tokens: list[tuple[str, float]]) -> None:
    found = evidence(tokens)
    if found is not None:
        assert all(-math.inf < value <= 0 for value in vars(found).values())
        assert found.weakest <= found.leading
        assert 0 <= Calibration.from_dict(WEIGHTS).expected_iou(found) <= 1


def test_more_certain_is_better() -> None:
    calibration = Calibration.from_dict(WEIGHTS)
    sure = evidence([("0.", 0.0), ("5", -0.1)])
    unsure = evidence([("0.", 0.0), ("5", -2.3)])
    assert sure is not None
    assert unsure is not None
    assert calibration.expected_iou(sure) > calibration.expected_iou(unsure)


@pytest.mark.parametrize("change", [{"bias": math.nan}, {"more": 1.0}])
def test_a_broken_calibration_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a calibration has the numbers"):
        Calibration.from_dict(WEIGHTS | change)
