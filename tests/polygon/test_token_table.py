"""The table against languages stated independently, over vocabularies that split text anyhow."""

import random
import re
from collections.abc import Callable, Mapping

import outlines_core
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpleseg_polygon.grammar import (
    Budget,
    TokenTable,
    TokenWalk,
    least_max_tokens,
    max_tokens_for,
    regex,
    token_bytes,
)
from simpleseg_polygon.prompts import Target

END = 1000
BYTES = {i: bytes([b]) for i, b in enumerate(b"[]0123456789., ")}
ANSWER = b"[[[0.1, 0.25], [1.0, 0.5], [0.125, 1.0]], [[0.5, 0.5], [0.1, 0.2]], [[0.3, 0.4]]]."
NUMBER = r"(0\.[0-9]{1,3}|1\.0)"
POINT = rf"\[{NUMBER}, {NUMBER}\]"

Choose = Callable[[list[int]], int]


def with_slices(cuts: list[tuple[int, int]]) -> dict[int, bytes]:
    """Single bytes and slices of an answer, some of which span several points or parts."""
    slices = sorted({ANSWER[at : at + length] for at, length in cuts} - set(BYTES.values()))
    return BYTES | {len(BYTES) + i: text for i, text in enumerate(slices)}


vocabularies = st.lists(
    st.tuples(st.integers(0, len(ANSWER) - 2), st.integers(2, 60)), max_size=25
).map(with_slices)


def strict_regex(min_points: int, max_points: int, max_parts: int) -> str:
    """Regions spelled out by the sizes of their parts: another way to the same language."""

    def sizes(left: int, parts: int) -> list[tuple[int, ...]]:
        return [()] + [
            (first, *rest)
            for first in range(min_points, left + 1)
            if parts
            for rest in sizes(left - first, parts - 1)
        ]

    def part(size: int) -> str:
        return rf"\[{POINT}(, {POINT}){{{size - 1}}}\]"

    regions = (rf"\[{', '.join(map(part, chosen))}\]" for chosen in sizes(max_points, max_parts))
    return rf"({'|'.join(regions)})\.?"


def walk_to_the_end(walk: TokenWalk, choose: Choose, vocabulary: Mapping[int, bytes]) -> bytes:
    text = b""
    while not walk.finished:
        token = choose(walk.allowed().tolist())
        walk.advance(token)
        text += vocabulary.get(token, b"")
    return text


def assert_same_masks(walk: TokenWalk, index: outlines_core.Index, choose: Choose) -> None:
    state = index.get_initial_state()
    while not walk.finished:
        allowed = walk.allowed().tolist()
        assert allowed == sorted(index.get_allowed_tokens(state))
        token = choose(allowed)
        walk.advance(token)
        if not walk.finished:
            state = index.get_next_state(state, token)


def index_of(pattern: str, vocabulary: Mapping[int, bytes]) -> outlines_core.Index:
    by_text: dict[bytes | str, list[int]] = {}
    for token, text in vocabulary.items():
        by_text.setdefault(text, []).append(token)
    return outlines_core.Index(pattern, outlines_core.Vocabulary(END, by_text))


@settings(max_examples=15, deadline=None)
@given(vocabulary=vocabularies, seed=st.integers(0, 2**32))
@pytest.mark.parametrize(
    ("min_points", "max_points", "max_parts"),
    [(3, 7, 2), (3, 7, 1), (2, 5, 5), (1, 4, 4), (1, 4, 2)],
)
def test_regions_have_exactly_the_parts_that_the_budget_allows(
    min_points: int, max_points: int, max_parts: int, vocabulary: dict[int, bytes], seed: int
) -> None:
    table = TokenTable("region", vocabulary, END)
    budget = Budget(max_tokens_for("region", max_points), max_points, max_parts, min_points)
    index = index_of(strict_regex(min_points, max_points, max_parts), vocabulary)
    choose = random.Random(seed).choice
    for _ in range(4):
        assert_same_masks(table.walk(budget), index, choose)


@settings(max_examples=15, deadline=None)
@given(vocabulary=vocabularies, seed=st.integers(0, 2**32))
@pytest.mark.parametrize("target", ["box", "point"])
def test_lists_have_exactly_the_items_that_the_budget_allows(
    target: Target, vocabulary: dict[int, bytes], seed: int
) -> None:
    table = TokenTable(target, vocabulary, END)
    bound = {"max_parts" if target == "box" else "max_points": 3}
    budget = Budget(max_tokens_for(target, 3), **bound)
    index = index_of(regex(target, budget), vocabulary)
    choose = random.Random(seed).choice
    for _ in range(4):
        assert_same_masks(table.walk(budget), index, choose)


def grudging(vocabulary: Mapping[int, bytes], rng: random.Random, straying: float = 0.0) -> Choose:
    """Ends only when it must, by the shortest tokens and longest numbers: the longest way there,
    from which it strays at the given rate."""

    last_resorts = [b",", b"1", b"]", b""]

    def reluctance(token: int) -> tuple[int, int]:
        text = vocabulary.get(token, b"")
        return (last_resorts.index(text) if text in last_resorts else -1), len(text)

    def choose(allowed: list[int]) -> int:
        if rng.random() < straying:
            return rng.choice(allowed)
        least = min(map(reluctance, allowed))
        return rng.choice([token for token in allowed if reluctance(token) == least])

    return choose


@settings(max_examples=60, deadline=None)
@given(
    vocabulary=vocabularies,
    seed=st.integers(0, 2**32),
    spare_tokens=st.integers(0, 150),
    min_points=st.integers(1, 6),
    target=st.sampled_from(["region", "box", "point"]),
    straying=st.sampled_from([0.0, 0.1]),
)
def test_every_answer_closes_within_max_tokens_however_it_is_spelled(
    vocabulary: dict[int, bytes],
    seed: int,
    spare_tokens: int,
    min_points: int,
    target: Target,
    straying: float,
) -> None:
    max_tokens = least_max_tokens(target, min_points) + spare_tokens
    walk = TokenTable(target, vocabulary, END).walk(Budget(max_tokens, min_points=min_points))
    taken: list[int] = []
    choose = grudging(vocabulary, random.Random(seed), straying)

    def counted(allowed: list[int]) -> int:
        assert allowed
        taken.append(choose(allowed))
        return taken[-1]

    text = walk_to_the_end(walk, counted, vocabulary).decode()
    assert len(taken) <= max_tokens
    patterns = {
        "region": strict_any_size(min_points),
        "box": regex("box", Budget(10_000)),
        "point": regex("point", Budget(10_000)),
    }
    assert re.fullmatch(patterns[target], text)


def strict_any_size(min_points: int) -> str:
    part = rf"\[{POINT}(, {POINT}){{{min_points - 1},}}\]"
    return rf"(\[\]|\[{part}(, {part})*\])\.?"


@pytest.mark.parametrize("max_tokens", range(max_tokens_for("region", 8, max_parts=1), 149))
def test_the_longest_way_to_the_end_fits_every_budget(max_tokens: int) -> None:
    walk = TokenTable("region", BYTES, END).walk(Budget(max_tokens))
    text = walk_to_the_end(walk, grudging(BYTES, random.Random(0)), BYTES)
    assert len(text) + 1 <= max_tokens
    assert text.count(b"], [") == (
        8 if max_tokens == max_tokens_for("region", 9, max_parts=1) else 7
    )


def test_a_token_may_finish_points_and_parts_and_begin_another_part() -> None:
    vocabulary = BYTES | {
        50: b"0.1], [0.2, 0.3]], [[0.4",
        51: b"0.1], [0.2, 0.3], [0.4, 0.5]], [[",
        52: b"0.1]], [[0.2, 0.3]], [[0.4",
    }
    table = TokenTable("region", vocabulary, END)

    def allowed_after(text: bytes, budget: Budget) -> set[int]:
        walk = table.walk(budget)
        for byte in text:
            walk.advance(BYTE_ID[byte])
        return set(walk.allowed().tolist()) & {50, 51, 52}

    roomy = Budget(500, min_points=3)
    assert allowed_after(b"[[[0.5, ", roomy) == {51}
    assert allowed_after(b"[[[0.5, 0.5], [0.5, ", roomy) == {50, 51}
    assert allowed_after(b"[[[0.5, 0.5], [0.5, ", Budget(500, max_parts=1)) == set()
    assert allowed_after(b"[[[0.5, 0.5], [0.5, ", Budget(500, max_points=6)) == {50}
    assert allowed_after(b"[[[0.5, ", Budget(500, max_points=5)) == set()
    assert allowed_after(b"[[[0.5, ", Budget(500, min_points=1)) == {50, 51, 52}


BYTE_ID = {text[0]: token for token, text in BYTES.items()}


def test_a_refused_token_changes_nothing_and_a_fork_goes_its_own_way() -> None:
    walk = TokenTable("region", BYTES, END).walk(Budget(64))
    walk.advance(BYTE_ID[ord("[")])
    before = walk.allowed().tolist()
    for refused in (END, BYTE_ID[ord("0")], 999, -1):
        with pytest.raises(ValueError, match="not allowed"):
            walk.advance(refused)
    fork = walk.fork()
    fork.advance(BYTE_ID[ord("]")])
    fork.advance(END)
    assert fork.finished
    assert fork.allowed().tolist() == []
    with pytest.raises(ValueError, match="not allowed"):
        fork.advance(END)
    assert walk.allowed().tolist() == before
    assert not walk.finished


def test_tokens_are_all_that_can_occur_and_the_end_token() -> None:
    vocabulary = BYTES | {60: b"]]", 61: b"[[", 62: b",,", 63: b"[]", 64: b"", 65: b"a", 66: b"]]"}
    assert TokenTable("region", vocabulary, END).tokens.tolist() == [*BYTES, 60, 61, 63, 66, END]


def test_allowed_is_read_only_and_sorted() -> None:
    allowed = TokenTable("point", BYTES, END).walk(Budget(64)).allowed()
    assert allowed.dtype.name == "int32"
    with pytest.raises(ValueError, match="read-only"):
        allowed[0] = 1


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="no grammar"):
        TokenTable("text", BYTES, END)
    with pytest.raises(ValueError, match=r"no token for \[' '\]"):
        TokenTable("region", {t: b for t, b in BYTES.items() if b != b" "}, END)
    table = TokenTable("region", BYTES, END)
    with pytest.raises(ValueError, match="max_tokens must be at least 52"):
        table.walk(Budget(51))
    with pytest.raises(ValueError, match="max_points 2 is below min_points 3"):
        table.walk(Budget(100, max_points=2))


def test_token_bytes_undoes_the_byte_level_alphabet() -> None:
    assert token_bytes({"Ġ[": 1, "Ċ": 2, "é": 3, "<|im_end|>": 4, "日": 5}) == {
        1: b" [",
        2: b"\n",
        3: b"\xe9",
        4: b"<|im_end|>",
        5: "日".encode(),
    }


def test_refused_names_what_only_the_budget_forbids() -> None:
    vocabulary = {i: bytes([b]) for i, b in enumerate(b"[]0123456789., ")}
    ids = {text: token for token, text in vocabulary.items()}
    table = TokenTable("region", vocabulary, end_token_id=99)
    walk = table.walk(Budget(max_tokens=200, max_points=3))
    for byte in b"[[[0.1, 0.1], [0.5, 0.1]":
        walk.advance(ids[bytes([byte])])
    assert walk.refused().tolist() == []  # a third vertex is owed, and there is room for it
    for byte in b", [0.5, 0.5]":
        walk.advance(ids[bytes([byte])])
    assert walk.refused().tolist() == [ids[b","]]
    assert walk.allowed().tolist() == [ids[b"]"]]
