"""Drafts: natural tokens, right structure, and enough of them accepted on outlines of masks."""

from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from simpleseg_polygon.codec import format_region
from simpleseg_polygon.contour import region_from_mask
from simpleseg_polygon.drafts import Drafter, PassCount, count_passes
from simpleseg_polygon.grammar import Budget, TokenTable

if TYPE_CHECKING:
    from tests.polygon.conftest import QwenTokens

SIZE_PX = 480


def outlines(epsilon_ratio: float, count: int = 12) -> list[str]:
    """Answers about letters with blots: corners, curves and often several parts."""
    rng = np.random.default_rng(4)
    answers = []
    for i in range(count):
        mask = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
        cv2.putText(mask, "AB8RS&Q5"[i % 8], (120, 380), cv2.FONT_HERSHEY_SIMPLEX, 11, 1, 50)
        for x, y, radius in rng.integers((60, 60, 15), (420, 420, 60), (3, 3)).tolist():
            cv2.circle(mask, (x, y), radius, 1, -1)
        region = region_from_mask(mask > 0, epsilon_ratio=epsilon_ratio, min_part_area_px=9)
        answers.append(format_region(region) + ".")
    return answers


def replay(qwen: "QwenTokens", drafter: Drafter, answers: list[str]) -> PassCount:
    counts = (count_passes(drafter.draft, qwen.encode(answer)) for answer in answers)
    return sum(counts, PassCount(0, 0, 0, 0))


@pytest.mark.parametrize(
    ("written", "drafted"),
    [
        ("[[", "[|0|."),
        ("[[[", "0|."),
        ("[[[0", "."),
        ("[[[0.123", ",| |0|."),
        ("[[[0.123, ", "0|."),
        ("[[[1", ".|0|,| |0|."),
        ("[[[1.0", ",| |0|."),
        ("[[[0.123, 0.456", "],| [|0|."),
        ("[[[0.123, 0.456],", " [|0|."),
        ("[[[0.123, 0.5], [", "0|."),
        ("[[[0.1, 0.2], [0.123", ",| |0|."),
        ("[[[0.1, 0.2], [0.3, 0.4]],", " [[|0|."),
        ("[[[0.1, 0.2], [0.3, 0.4]", ",| [|0|."),
        ("[[[0.1, 0.2], [0.3, 0.4]]", "]."),
        ("[[[0.1, 0.2], [0.3, 0.4]]]", "."),
        ("[[[0.12", ""),
        ("[[[0.1, 0.2]]].", ""),
        ("[", "0|."),
        ("[0.125", ",| |0|."),
        ("[0.125, 0.25, 0.5, 0.125", "]."),
        ("[[0.125, 0.25, 0.5, 0.125", "],| [|0|."),
        ("[[0.125, 0.25, 0.5, 0.125], [0.5, 0.625", ",| |0|."),
        ("[[0.1, 0.2], [0.5, 0.625", "],| [|0|."),
        ("[]", ""),
    ],
)
def test_structure_is_drafted_in_natural_tokens(
    qwen: "QwenTokens", written: str, drafted: str
) -> None:
    ids = qwen.encode(written)[:-1]
    draft = Drafter(qwen.vocabulary, digits=0).draft(ids)
    assert "|".join(qwen.vocabulary[token].decode() for token in draft) == drafted


def test_every_draft_is_what_the_tokenizer_makes_of_its_text(qwen: "QwenTokens") -> None:
    drafter = Drafter(qwen.vocabulary)
    for answer in [*outlines(0.02, count=1), "[[[0.1, 0.2], [0.1, 0.9], [1.0, 0.9]], [[0.5"]:
        ids = qwen.encode(answer)[:-1]
        for done in range(1, len(ids)):
            draft = drafter.draft(ids[:done])
            text = b"".join(qwen.vocabulary[token] for token in ids[:done] + draft).decode()
            # The text's last token may grow with what would follow it.
            assert qwen.encode(text)[:-2][: done + len(draft)] == (ids[:done] + draft)[:-1]


def test_whole_drafts_stay_in_the_grammar(qwen: "QwenTokens") -> None:
    table = TokenTable("region", qwen.vocabulary, qwen.end_token_id)
    drafter = Drafter(qwen.vocabulary)
    for answer in outlines(0.01, count=2):
        walk = table.walk(Budget(max_tokens=2000, min_points=1))
        ids = qwen.encode(answer)
        for done, token in enumerate(ids):
            fork = walk.fork()
            for drafted in drafter.draft(ids[:done]):
                fork.advance(drafted)
            walk.advance(token)


@pytest.mark.parametrize("max_draft", [1, 3, 8, 12])
def test_drafts_are_bounded(qwen: "QwenTokens", max_draft: int) -> None:
    drafter = Drafter(qwen.vocabulary, max_draft)
    ids = qwen.encode(outlines(0.005, count=1)[0])
    lengths = [len(drafter.draft(ids[:done])) for done in range(len(ids))]
    assert max(lengths) == max_draft


def test_foreign_tokens_count_as_nothing(qwen: "QwenTokens") -> None:
    ids = qwen.encode("[[[0.123")[:-1]
    drafter = Drafter(qwen.vocabulary, digits=0)
    assert drafter.draft([*ids[:3], qwen.end_token_id, *ids[3:]]) == drafter.draft(ids)
    assert drafter.draft([9, 9, 10**9]) == drafter.draft([])


def test_numbers_of_several_digits_a_token_are_drafted_whole() -> None:
    pieces = [b"[[", b"[", b" [", b"],", b",", b" ", b"0", b".", b"]", b"]]"]
    numbers = [b"%03d" % i for i in range(1000)] + [b"%02d" % i for i in range(100)]
    vocabulary = dict(enumerate(pieces + numbers + [b"%d" % i for i in range(1, 10)]))
    token = {text: i for i, text in vocabulary.items()}
    answer = [b"[[", b"[", b"0", b".", b"400", b",", b" ", b"0", b".", b"415", b"],", b" ["]
    drafter = Drafter(vocabulary, 5, least_chance=0)
    draft = [vocabulary[t] for t in drafter.draft([token[t] for t in [*answer, b"0", b"."]])]
    assert draft[0].isdigit()
    assert draft[1:] == [b",", b" ", b"0", b"."]


def test_the_end_of_a_part_is_drafted(qwen: "QwenTokens") -> None:
    drafter = Drafter(qwen.vocabulary)
    around = [(0.3, 0.3), (0.5, 0.2), (0.7, 0.3), (0.8, 0.5), (0.7, 0.7), (0.5, 0.8), (0.3, 0.7)]
    text = "[[" + ", ".join(str(list(vertex)) for vertex in [*around, (0.205, 0.495)])
    ids = qwen.encode(text[:-1])[:-1]
    spelled = [qwen.vocabulary[token] for token in drafter.draft(ids)]
    assert spelled == [b"]]", b"]."]
    half = qwen.encode("[[[0.3, 0.3], [0.5, 0.2], [0.7, 0.305")[:-1]
    assert qwen.vocabulary[drafter.draft(half)[0]] == b"],"


@pytest.mark.parametrize(
    ("written", "drafted"),
    [
        ("[[[0.1, 0.2], [0.3, 0.4]]", "].|END"),
        ("[[[0.1, 0.2], [0.3, 0.4]]]", ".|END"),
        ("[0.125, 0.25, 0.5, 0.125", "].|END"),
        ("[[[0.123", ",| |0|."),
    ],
)
def test_the_end_token_is_drafted_after_a_whole_answer(
    qwen: "QwenTokens", written: str, drafted: str
) -> None:
    drafter = Drafter(qwen.vocabulary, digits=0, end_token_id=qwen.end_token_id)
    spelled = {**qwen.vocabulary, qwen.end_token_id: b"END"}
    draft = drafter.draft(qwen.encode(written)[:-1])
    assert b"|".join(spelled[token] for token in draft).decode() == drafted


def test_the_least_chance_shortens_drafts(qwen: "QwenTokens") -> None:
    answers = outlines(0.005, count=3)
    counts = [
        replay(qwen, Drafter(qwen.vocabulary, least_chance=chance), answers)
        for chance in (0.0, 0.1, 0.3)
    ]
    drafted = [count.drafted / count.passes for count in counts]
    accepted = [count.accepted / count.drafted for count in counts]
    passes = [count.passes for count in counts]
    assert drafted == sorted(drafted, reverse=True)
    assert accepted == sorted(accepted)
    assert passes == sorted(passes)
    # What is drafted at a chance of 0.3 or more is right more often than that.
    assert accepted[2] > 0.6


def test_a_grid_settles_the_third_digit(qwen: "QwenTokens") -> None:
    drafter = Drafter(qwen.vocabulary, grid_hw=(100, 128))
    x_is_known_to_23 = qwen.encode("[[[0.1, 0.2], [0.23")[:-1]
    y_is_known_to_23 = qwen.encode("[[[0.1, 0.2], [0.5, 0.23")[:-1]
    text = [qwen.vocabulary[drafter.draft(ids)[0]] for ids in (x_is_known_to_23, y_is_known_to_23)]
    assert text == [b"4", b"],"]  # 30/128 = 0.234, 23/100 = 0.23


def test_count_passes_follows_greedy_verification() -> None:
    assert count_passes(lambda so_far: [], [1, 2, 3]) == PassCount(3, 3, 0, 0)
    assert count_passes(lambda so_far: [9, 9], [1, 2, 3]) == PassCount(3, 3, 4, 0)
    assert count_passes(lambda so_far: [2, 3, 4], [1, 2, 3]) == PassCount(3, 2, 3, 2)


@pytest.mark.parametrize(("epsilon_ratio", "least"), [(0.002, 4.2), (0.005, 3.4), (0.01, 3.0)])
def test_tokens_per_pass_on_outlines(
    qwen: "QwenTokens", epsilon_ratio: float, least: float
) -> None:
    answers = outlines(epsilon_ratio)
    structure = replay(qwen, Drafter(qwen.vocabulary, digits=0), answers).tokens_per_pass
    digits = replay(qwen, Drafter(qwen.vocabulary), answers).tokens_per_pass
    on_grid = Drafter(qwen.vocabulary, grid_hw=(SIZE_PX, SIZE_PX))
    assert structure > 2.2
    assert digits > least
    assert replay(qwen, on_grid, answers).tokens_per_pass > digits
