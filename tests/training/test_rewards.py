"""Rewards: what is right scores more, and every text has a score."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpleseg_polygon.codec import format_box, format_region
from simpleseg_polygon.contour import region_from_mask
from simpleseg_polygon.geometry import Box
from simpleseg_polygon.rle import mask_to_rle
from simpleseg_training.pairs import Truth
from simpleseg_training.rewards import (
    distance_reward,
    format_reward,
    is_well_formed,
    length_penalty,
    overlap_reward,
    reward_functions,
)
from simpleseg_training.train_config import Rewards


def _square(left: int, top: int, side: int = 20) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    mask = np.zeros((100, 100), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def _text(left: int, top: int) -> str:
    return format_region(region_from_mask(_square(left, top))) + "."


HERE = Truth("region", mask_to_rle(_square(40, 40)), _text(40, 40))
NOWHERE = Truth("region", mask_to_rle(np.zeros((100, 100), bool)), "[].")
BOX = Truth("box", HERE.mask, format_box(Box(0.4, 0.4, 0.6, 0.6)) + ".")
NO_BOX = Truth("box", NOWHERE.mask, "[].")
TRUTHS = (HERE, NOWHERE, BOX, NO_BOX)


def test_the_truth_scores_one() -> None:
    for truth in TRUTHS:
        assert overlap_reward(truth.answer, truth) == pytest.approx(1)
        assert distance_reward(truth.answer, truth) == pytest.approx(1, abs=1e-6)
        assert format_reward(truth.answer, truth) == 1


def test_nearer_scores_more() -> None:
    near, far = _text(45, 40), _text(75, 75)
    assert overlap_reward(HERE.answer, HERE) > overlap_reward(near, HERE) > 0
    assert overlap_reward(far, HERE) == 0
    assert distance_reward(near, HERE) == pytest.approx(math.exp(-0.5))
    assert distance_reward(far, HERE) > 0  # what the overlap does not tell
    assert distance_reward(near, HERE) > distance_reward(far, HERE)


def test_an_absent_object_is_found_nowhere_and_in_words_of_the_language() -> None:
    for text in ("", "there is none", HERE.answer, BOX.answer, "[[]", "[[[0.1, 0.1]]]"):
        for truth in (NOWHERE, NO_BOX):
            assert overlap_reward(text, truth) == distance_reward(text, truth) == 0
    for truth in (HERE, BOX):
        assert overlap_reward("[].", truth) == distance_reward("[].", truth) == 0


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        ("[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]].", "region", True),
        ("[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]]", "region", True),
        ("[[[0.1,0.2], [0.5, 0.2], [0.5, 0.9]]]", "region", False),
        ("[[[0.1234, 0.2], [0.5, 0.2], [0.5, 0.9]]]", "region", False),
        ("[[[0.1, 0.2], [0.5, 0.2], [0.5, 1.9]]]", "region", False),
        ("It is [[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]]", "region", False),
        ("[[[0.1, 0.2], [0.5, 0.2]]]", "region", False),
        ("[0.1, 0.2, 0.3, 0.4].", "box", True),
        ("[0.3, 0.2, 0.1, 0.4].", "box", False),
        ("[0.1, 0.2].", "point", True),
        ("[].", "point", False),
    ],
)
def test_format(text: str, target: str, expected: bool) -> None:
    assert is_well_formed(text, target) is expected  # type: ignore[arg-type]


ALPHABET = st.one_of(
    st.text(),
    st.text("[]., 0123456789-e+naif\n", max_size=200),
    st.sampled_from([HERE.answer, BOX.answer, "[].", "[[[nan, inf], [1e999, -1e999], [0, 0]]]."]),
)


@given(st.lists(ALPHABET, min_size=1, max_size=6), st.data())
def test_every_text_has_a_score(texts: list[str], data: st.DataObject) -> None:
    truths = [data.draw(st.sampled_from(TRUTHS)) for _ in texts]
    weights = Rewards(iou=1, distance=1, format=1, length=1)
    functions, chosen = reward_functions(weights, 50)
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    ids = [list(range(len(text))) for text in texts]
    for function in functions:
        scores = function(completions=completions, truth=truths, completion_ids=ids, prompts=texts)
        assert len(scores) == len(texts)
        low = -1 if function.__name__ == "length" else 0
        assert all(low <= score <= 1 for score in scores)
    assert chosen == [1, 1, 1, 1]


def test_weights_choose_the_rewards() -> None:
    functions, weights = reward_functions(Rewards(distance=0, length=0.5), 100)
    assert [f.__name__ for f in functions] == ["iou", "format", "length"]
    assert weights == [1.0, 0.2, 0.5]
    assert (length_penalty(50, 100), length_penalty(500, 100)) == (-0.5, -1.0)
