"""EBNF, regex and table side by side: one language, and the same masks over the Qwen tokenizer."""

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import outlines_core
import pytest
import xgrammar

from simpleseg_polygon.codec import format_region
from simpleseg_polygon.contour import region_from_mask
from simpleseg_polygon.grammar import Budget, TokenTable, ebnf, max_tokens_for, regex
from simpleseg_polygon.prompts import Target

if TYPE_CHECKING:
    from tests.polygon.conftest import QwenTokens

CORPORA = Path(__file__).parents[1] / "golden" / "grammar"
TARGETS: tuple[Target, ...] = ("region", "box", "point")
ROOMY = Budget(max_tokens=1000)
WORDS = b"[]0123456789., "
BYTES = {i: bytes([b]) for i, b in enumerate(WORDS)}

EXACT: list[tuple[Target, Budget]] = [
    ("region", Budget(max_tokens_for("region", 5), max_points=5, min_points=1)),
    ("region", Budget(max_tokens_for("region", 5, max_parts=1), max_points=5, max_parts=1)),
    ("box", Budget(max_tokens_for("box", 3), max_parts=3)),
    ("point", Budget(max_tokens_for("point", 4), max_points=4)),
]


def corpus(kind: str) -> list[tuple[Target, str]]:
    return [
        (target, line)
        for target in TARGETS
        for line in (CORPORA / f"{target}.{kind}.txt").read_text().splitlines()
    ]


class Peers:
    """xgrammar over the whole Qwen vocabulary; outlines_core over the tokens of the alphabet."""

    def __init__(self, qwen: "QwenTokens") -> None:
        self.end = qwen.end_token_id
        self.size = max(qwen.vocabulary) + 1
        texts = [qwen.vocabulary.get(i, b"") for i in range(self.size)]
        info = xgrammar.TokenizerInfo(texts, stop_token_ids=[self.end])
        self.compiler = xgrammar.GrammarCompiler(info, max_threads=1)
        self.spelled: dict[bytes | str, list[int]] = {}
        for token, text in qwen.vocabulary.items():
            if text and set(text) <= set(WORDS):
                self.spelled.setdefault(text, []).append(token)

    def matcher(self, target: Target, budget: Budget) -> Any:
        return xgrammar.GrammarMatcher(self.compiler.compile_grammar(ebnf(target, budget)))

    def mask(self, matcher: Any) -> list[int]:
        bits = np.zeros((1, (self.size + 31) // 32), np.int32)
        if not matcher.fill_next_token_bitmask(bits):
            bits[:] = -1
        is_allowed = np.unpackbits(bits.view(np.uint8), bitorder="little")[: self.size]
        allowed: list[int] = np.flatnonzero(is_allowed).tolist()
        return allowed

    def index(self, target: Target, budget: Budget) -> outlines_core.Index:
        vocabulary = outlines_core.Vocabulary(self.end, self.spelled)
        return outlines_core.Index(regex(target, budget), vocabulary)


@pytest.fixture(scope="module")
def peers(qwen: "QwenTokens") -> Peers:
    return Peers(qwen)


def accepts(walk: Any, text: str) -> bool | None:
    """Whether a table walk accepts a text byte by byte; None where the text is only a beginning."""
    for byte in text.encode():
        token = WORDS.find(byte)
        if token not in walk.allowed():
            return False
        walk.advance(token)
    return True if 999 in walk.allowed() else None


@pytest.mark.parametrize(("target", "text"), corpus("accept"))
def test_answers_are_accepted(peers: Peers, target: Target, text: str) -> None:
    assert accepts(TokenTable(target, BYTES, 999).walk(ROOMY), text) is True
    assert re.fullmatch(regex(target, ROOMY), text)
    matcher = peers.matcher(target, ROOMY)
    assert matcher.accept_string(text)
    assert peers.end in peers.mask(matcher)


@pytest.mark.parametrize(("target", "text"), corpus("reject"))
def test_other_texts_are_rejected(peers: Peers, target: Target, text: str) -> None:
    assert accepts(TokenTable(target, BYTES, 999).walk(ROOMY), text) is False
    assert not re.fullmatch(regex(target, ROOMY), text)
    assert not peers.matcher(target, ROOMY).accept_string(text)


@pytest.mark.parametrize(("target", "text"), corpus("incomplete"))
def test_beginnings_go_on_but_do_not_end(peers: Peers, target: Target, text: str) -> None:
    assert accepts(TokenTable(target, BYTES, 999).walk(ROOMY), text) is None
    assert not re.fullmatch(regex(target, ROOMY), text)
    matcher = peers.matcher(target, ROOMY)
    assert matcher.accept_string(text)
    assert peers.end not in peers.mask(matcher)


class SideBySide:
    """One language three times; ``follow`` holds the masks against each other at every step."""

    def __init__(self, qwen: "QwenTokens", peers: Peers, target: Target, budget: Budget) -> None:
        self.peers, self.target, self.budget = peers, target, budget
        self.table = TokenTable(target, qwen.vocabulary, qwen.end_token_id)
        self.index = peers.index(target, budget)

    def follow(self, choose: Callable[[list[int]], int]) -> int:
        walk, matcher = self.table.walk(self.budget), self.peers.matcher(self.target, self.budget)
        state = self.index.get_initial_state()
        masks = 0
        while True:
            allowed = walk.allowed().tolist()
            assert allowed == self.peers.mask(matcher)
            assert allowed == sorted(self.index.get_allowed_tokens(state))
            masks += 1
            token = choose(allowed)
            walk.advance(token)
            if walk.finished:
                return masks
            assert matcher.accept_token(token)
            state = self.index.get_next_state(state, token)


@pytest.mark.parametrize(("target", "budget"), EXACT)
def test_masks_are_the_same_on_random_walks(
    qwen: "QwenTokens", peers: Peers, target: Target, budget: Budget
) -> None:
    sides = SideBySide(qwen, peers, target, budget)
    choose = random.Random(5).choice
    assert sum(sides.follow(choose) for _ in range(80)) > 400


def outlines(count: int, seed: int) -> list[str]:
    """Answers about masks of letters, ellipses and several parts."""
    rng = np.random.default_rng(seed)
    answers = []
    for i in range(count):
        mask = np.zeros((240, 320), np.uint8)
        x, y, size = (int(v) for v in rng.integers((60, 60, 20), (260, 180, 55)))
        if i % 2:
            cv2.putText(mask, "%&ARS8"[i // 2 % 6], (x - 30, y + 30), 0, size / 12, 1, size // 4)
        cv2.ellipse(mask, (x, y), (size, size // 2), int(rng.integers(180)), 0, 360, 1, -1)
        cv2.circle(mask, (320 - x, 240 - y), size // 3, 1, -1)
        region = region_from_mask(mask > 0, epsilon_ratio=0.004, min_part_area_px=9)
        answers.append(format_region(region) + ".")
    return answers


NATURAL: dict[Target, list[str]] = {
    "region": [*outlines(4, seed=1), "[]", "[].", "[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]]"],
    "box": ["[0.1, 0.25, 1.0, 0.4].", "[[0.1, 0.2, 0.3, 0.4], [0.0, 0.125, 0.9, 1.0]].", "[]."],
    "point": ["[0.125, 0.5]", "[0.1, 1.0].", "[[0.1, 0.2], [0.345, 0.5]].", "[]"],
}


@pytest.mark.parametrize("target", TARGETS)
def test_masks_are_the_same_on_natural_answers_and_ban_no_natural_token(
    qwen: "QwenTokens", peers: Peers, target: Target
) -> None:
    items = 120
    bound = {"max_parts" if target == "box" else "max_points": items}
    budget = Budget(max_tokens_for(target, items), min_points=1, **bound)
    sides = SideBySide(qwen, peers, target, budget)
    for answer in NATURAL[target]:
        ids = iter(qwen.encode(answer))
        assert sides.follow(lambda allowed: next(ids)) == len(qwen.encode(answer))  # noqa: B023


def test_strict_table_bans_no_token_of_natural_answers_within_their_budget(
    qwen: "QwenTokens",
) -> None:
    table = TokenTable("region", qwen.vocabulary, qwen.end_token_id)
    for answer in outlines(60, seed=2):
        ids = qwen.encode(answer)
        walk = table.walk(Budget(max_tokens=len(ids) + 24))
        for token in ids:
            assert token in walk.allowed()
            walk.advance(token)
        assert walk.finished


def test_strict_table_is_within_the_ebnf_and_refuses_only_small_parts(
    qwen: "QwenTokens", peers: Peers
) -> None:
    budget = Budget(max_tokens_for("region", 8), max_points=8)
    table = TokenTable("region", qwen.vocabulary, qwen.end_token_id)
    rng = random.Random(3)
    refused: set[bytes] = set()
    for _ in range(40):
        walk, matcher = table.walk(budget), peers.matcher("region", budget)
        while not walk.finished:
            allowed = set(walk.allowed().tolist())
            flat = set(peers.mask(matcher))
            assert allowed <= flat
            refused |= {qwen.vocabulary[token] for token in flat - allowed}
            token = rng.choice(sorted(allowed))
            walk.advance(token)
            assert walk.finished or matcher.accept_token(token)
    assert refused <= {b"]", b"]]", b"]],", b"]].", b",", b"],", b"]]]", b"]]]."}
    assert {b"]]", b"]],"} <= refused


@pytest.mark.parametrize(
    ("target", "max_parts"), [("region", None), ("region", 1), ("box", None), ("point", None)]
)
@pytest.mark.parametrize("items", [1, 2, 7, 200])
def test_the_longest_answer_takes_max_tokens_for_its_items(
    target: Target, max_parts: int | None, items: int
) -> None:
    item = "[" + ", ".join(["0.123"] * (4 if target == "box" else 2)) + "]"
    separator = "], [" if target == "region" and max_parts is None else ", "
    wrapped = "[[{}]]." if target == "region" else "[{}]."
    longest = wrapped.format(separator.join([item] * items))
    max_tokens = max_tokens_for(target, items, max_parts=max_parts)
    assert len(longest) + 1 == max_tokens
    budget = Budget(max_tokens, max_parts=max_parts, min_points=1)
    assert re.fullmatch(regex(target, budget), longest)
    one_more = wrapped.format(separator.join([item] * (items + 1)))
    assert not re.fullmatch(regex(target, budget), one_more)
    assert accepts(TokenTable(target, BYTES, 999).walk(budget), longest) is True


def test_the_items_are_bounded_at_exactly_the_bound(peers: Peers) -> None:
    for items in (4, 64, 256):
        budget = Budget(max_tokens=100_000, max_points=items)
        matcher = peers.matcher("region", budget)
        at_bound = "[[[" + "], [".join(["0.1, 0.2"] * items) + "]]]."
        beyond = "[[[" + "], [".join(["0.1, 0.2"] * (items + 1)) + "]]]."
        assert matcher.accept_string(at_bound)
        assert not peers.matcher("region", budget).accept_string(beyond)
        table = TokenTable("region", BYTES, 999)
        assert accepts(table.walk(budget), at_bound) is True
        assert accepts(table.walk(budget), beyond) is False


def test_budgets_that_cannot_be_stated_or_met_are_refused() -> None:
    with pytest.raises(ValueError, match="points and parts at once"):
        ebnf("region", Budget(500, max_points=20, max_parts=2))
    with pytest.raises(ValueError, match="holds 2 items, fewer than the least of 3"):
        regex("region", Budget(500, max_points=2))
    with pytest.raises(ValueError, match="holds 0 items"):
        regex("box", Budget(20))
    with pytest.raises(ValueError, match="no grammar"):
        ebnf("text", Budget(500))
    with pytest.raises(ValueError, match="max_points must be at least 1"):
        Budget(500, max_points=0)
