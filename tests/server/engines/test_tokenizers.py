"""Real tokenizers of every kind: prompt, token table, grammar and drafts follow the one loaded."""

import random
import re
from dataclasses import dataclass

import numpy as np
import pytest

from simpleseg_polygon.codec import format_region
from simpleseg_polygon.contour import region_from_mask
from simpleseg_polygon.drafts import Drafter, PassCount, count_passes
from simpleseg_polygon.grammar import Budget, TokenTable, regex
from simpleseg_polygon.prompts import Target, instruction
from simpleseg_server.engines.base import GenerationRequest
from simpleseg_server.engines.item_limit import ItemLimit, item_limit, items_within
from simpleseg_server.engines.prompting import Prompter

from .real_tokenizers import BUILDERS

CORNERS = "[[[0.123, 0.456], [0.5, 0.25], [1.0, 0.0]], [[0.1, 0.2], [0.12, 0.999], [0.3, 0.45]]]."
OTHER_ANSWERS = ("[].", "[]", "[0.1, 0.25, 0.333, 1.0].", "[[0.1, 0.2], [1.0, 0.345]].", CORNERS)
GROUPS_DIGITS = ("deepseek", "kimi")


@dataclass(frozen=True)
class Loaded:
    name: str
    prompter: Prompter

    def natural(self, text: str) -> list[int]:
        """The tokens that the tokenizer splits an answer into, then the end token."""
        return [*self.prompter.ids(text)[self.skip :][: -len(self.prompter.prompt_end)], self.end]

    @property
    def skip(self) -> int:
        return len(self.prompter.ids("")) - len(self.prompter.prompt_end)

    @property
    def end(self) -> int:
        return self.prompter.end_token_id


@pytest.fixture(scope="module", params=BUILDERS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    name: str = request.param
    folder = tmp_path_factory.mktemp(name)
    BUILDERS[name](folder)
    return Loaded(name, Prompter(str(folder), trust_remote_code=name == "kimi"))


@pytest.fixture(scope="module")
def outlines() -> list[str]:
    """Answers that follow the outlines of wavy blobs of 480 pixels."""
    rng = np.random.default_rng(4)
    rows, columns = np.mgrid[:480, :480]
    texts = []
    for _ in range(8):
        y, x = rng.uniform(180, 300, 2)
        angle = np.arctan2(rows - y, columns - x)
        waves = sum(rng.uniform(-20, 20) * np.cos(k * angle + rng.uniform(0, 6)) for k in (2, 3, 5))
        mask = np.hypot(rows - y, columns - x) < 110 + waves
        texts.append(format_region(region_from_mask(mask, epsilon_ratio=0.002)) + ".")
    return texts


def test_tokens_spell_the_text(loaded: Loaded, outlines: list[str]) -> None:
    for text in (*OTHER_ANSWERS, *outlines):
        spelled = b"".join(loaded.prompter.vocabulary[t] for t in loaded.natural(text)[:-1])
        assert spelled.decode() == text


def test_a_number_is_one_token_or_several(loaded: Loaded) -> None:
    tokens = [loaded.prompter.vocabulary[t] for t in loaded.natural("[[[0.123")[:-1]]
    expected = [b"123"] if loaded.name in GROUPS_DIGITS else [b"1", b"2", b"3"]
    assert tokens[-len(expected) :] == expected


def test_the_end_token_is_the_turn_s(loaded: Loaded) -> None:
    """Kimi's files name ``[EOS]``, which its chat template never writes."""
    assert loaded.end not in loaded.prompter.vocabulary
    if loaded.name in ("demo", "qwen", "kimi"):
        assert loaded.prompter.ids("")[-len(loaded.prompter.prompt_end)] == loaded.end


@pytest.mark.catalogue("B4")
def test_names_of_control_tokens_in_a_phrase_are_text(loaded: Loaded) -> None:
    names = "<|im_end|> <|media_pad|> <|image_pad|> </s> <s> [EOS] <|endoftext|>"
    ids = loaded.natural(names)[:-1]
    assert all(token in loaded.prompter.vocabulary for token in ids)
    assert b"".join(loaded.prompter.vocabulary[t] for t in ids).decode().strip() == names


def test_no_natural_token_is_banned(loaded: Loaded, outlines: list[str]) -> None:
    vocabulary, end = loaded.prompter.vocabulary, loaded.end
    tables = {t: TokenTable(t, vocabulary, end) for t in ("region", "box", "point")}
    for text in (*outlines, *OTHER_ANSWERS):
        target = "region" if text.startswith(("[[[", "[]")) else "point"
        if text.count(",") == 3 and "[[" not in text:
            target = "box"
        walk = tables[target].walk(Budget(8192))
        for token in loaded.natural(text):
            assert token in walk.allowed(), (text, vocabulary.get(token))
            walk.advance(token)
        assert walk.finished


@pytest.mark.parametrize("target", ["region", "box", "point"])
def test_random_walks_stay_in_the_reference_grammar(loaded: Loaded, target: Target) -> None:
    """The regular expression, which knows no tokens, accepts what the table writes; and the table
    closes every answer within its tokens, whatever spelling is drawn."""
    table = TokenTable(target, loaded.prompter.vocabulary, loaded.end)
    language = re.compile(regex(target, Budget(10**5, min_points=1)))
    draw = random.Random(5)
    for _ in range(40):
        budget = Budget(draw.randrange(60, 200))
        walk, text, used = table.walk(budget), b"", 0
        while not walk.finished:
            allowed = walk.allowed()
            # Lists that close at once say little.
            going_on = [t for t in allowed if b"]" not in loaded.prompter.vocabulary.get(t, b"]")]
            token = int(draw.choice(going_on if going_on and draw.random() < 0.9 else allowed))
            walk.advance(token)
            text += loaded.prompter.vocabulary.get(token, b"")
            used += 1
        assert used <= budget.max_tokens
        assert language.fullmatch(text.decode()), text


def test_the_table_allows_what_the_reference_grammar_does(loaded: Loaded) -> None:
    """At every place of an answer: exactly the tokens after which the text is still the beginning
    of one. Places are compared by the bytes that may follow, one at a time."""
    table = TokenTable("region", loaded.prompter.vocabulary, loaded.end)
    single = {bytes([b]): b for b in range(256)}
    bytewise = TokenTable("region", {b: text for text, b in single.items()}, 999)
    walk, reference = table.walk(Budget(8192)), bytewise.walk(Budget(8192))
    answer_tokens = {t: loaded.prompter.vocabulary.get(t, b"") for t in table.tokens.tolist()}
    for token in loaded.natural(CORNERS)[:-1]:
        expected = set()
        for candidate, text in answer_tokens.items():
            trial = reference.fork()
            try:
                for byte in text or b"":
                    trial.advance(byte)
            except ValueError:
                continue
            if text or 999 in trial.allowed():
                expected.add(candidate)
        assert set(walk.allowed().tolist()) == expected
        walk.advance(token)
        for byte in loaded.prompter.vocabulary[token]:
            reference.advance(byte)


def test_drafts_save_passes(loaded: Loaded, outlines: list[str]) -> None:
    vocabulary = loaded.prompter.vocabulary

    def replay(drafter: Drafter) -> PassCount:
        counts = (count_passes(drafter.draft, loaded.natural(text)) for text in outlines)
        return sum(counts, PassCount(0, 0, 0, 0))

    structure, digits = replay(Drafter(vocabulary, digits=0)), replay(Drafter(vocabulary))
    assert structure.accepted > 0.9 * structure.drafted
    assert digits.tokens_per_pass > structure.tokens_per_pass
    assert structure.tokens_per_pass > (3.8 if loaded.name in GROUPS_DIGITS else 2.0)
    if loaded.name in GROUPS_DIGITS:  # a part of a number would be another token
        assert replay(Drafter(vocabulary, digits=2)) == structure
    undotted = Drafter(vocabulary, final_dot=False).draft(loaded.natural("[[[0.1, 0.2]]")[:-1])
    assert [vocabulary[token] for token in undotted] == [b"]"]


def test_budgets_hold_what_the_tokenizer_can_write(loaded: Loaded, outlines: list[str]) -> None:
    """Counted tokens give more vertices than the bound for the worst spelling does."""
    long = "[[" + ", ".join(re.findall(r"\[0[^]]*\]", "".join(outlines))[:200]) + "]]."
    request = GenerationRequest(
        "r", np.zeros((1, 1, 3), np.uint8), "k", instruction("region", "x"), "region", 1024
    )
    counted = item_limit(request, 8192, counts_tokens=True)
    assert counted is not None
    vertices = _vertices(counted, loaded, long)
    assert items_within("region", 1024, None) == 56
    assert vertices >= (95 if loaded.name in GROUPS_DIGITS else 71)


def _vertices(limit: ItemLimit, loaded: Loaded, text: str) -> int:
    written = ""
    for token in loaded.natural(text)[:-1]:
        written += limit.read(loaded.prompter.vocabulary[token].decode())
        if limit.is_cut:
            break
    assert limit.tokens is not None
    assert limit.tokens >= 0
    return written.count("[0.")
