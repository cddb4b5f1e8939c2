"""How one answer ends: of itself, or because the budget closed it."""

import numpy as np
import pytest
from numpy.typing import NDArray

from simpleseg_polygon.grammar import Budget, TokenTable
from simpleseg_server.engines.answers import Answer, AnswerRules, Choice

VOCABULARY = {i: bytes([b]) for i, b in enumerate(b"[]0123456789., ")}
IDS = {text: token for token, text in VOCABULARY.items()}
END = len(VOCABULARY)
THREE_POINTS = b"[[[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]"


def wish(tokens: dict[bytes, float]) -> NDArray[np.float32]:
    """Logits (1, vocabulary) that favour the given tokens."""
    logits = np.zeros((1, END + 1), np.float32)
    for text, value in tokens.items():
        logits[0, IDS[text]] = value
    return logits


def answer_with(after_three_points: dict[bytes, float], max_points: int) -> Answer:
    """An answer that wrote three points, was then given these wishes once, and ended."""
    table = TokenTable("region", VOCABULARY, END)
    rules = AnswerRules(VOCABULARY, np.arange(END + 1, dtype=np.int32), frozenset([END]), None, 0)
    walk = table.walk(Budget(max_tokens=200, max_points=max_points))
    answer = Answer(rules, walk, Choice(0.0, None), 200)
    for byte in THREE_POINTS:
        answer.read([], wish({bytes([byte]): 9.0}))
    answer.read([], wish(after_three_points))
    while answer.finish_reason is None:
        answer.read([], wish({b"]": 1.0}))
    return answer


@pytest.mark.parametrize(
    ("wishes", "max_points", "reason"),
    [
        ({b"]": 9.0, b",": 1.0}, 3, "stop"),  # would have closed anyway
        ({b"]": 1.0, b",": 9.0}, 3, "length"),  # wanted a fourth point
        ({b"]": 9.0, b",": 1.0}, 30, "stop"),
    ],
)
def test_reason_tells_whether_the_budget_closed_the_answer(
    wishes: dict[bytes, float], max_points: int, reason: str
) -> None:
    assert answer_with(wishes, max_points).finish_reason == reason
