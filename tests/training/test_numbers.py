"""Number spans and number-level soft targets."""

import numpy as np
import torch
from tokenizers import Tokenizer

from simpleseg_training import numbers
from simpleseg_training.examples import tokenizer_corpus
from simpleseg_training.numbers import FIRST, INTEGER, SECOND, TERMINATOR, THIRD, NumberSpans
from simpleseg_training.tokenizer import qwen_tokenizer_file


def test_spans_of_numbers_of_every_length(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode("[[[0.5, 0.123], [1.0, 0.07]]].")
    spans = NumberSpans.finder(tokenizer)(encoded.ids)
    inside = [
        (token, int(place), int(value))
        for token, place, value in zip(encoded.tokens, spans.places, spans.values, strict=True)
        if place
    ]
    assert inside[:4] == [("0", 1, 500), (".", 2, 500), ("5", 3, 500), (",", 4, 500)]
    assert inside[4:10][-1] == ("],", 6, 123)
    assert ("1", 1, 1000) in inside
    assert inside[-1] == ("]]", 5, 70)


def test_soft_targets_are_distributions() -> None:
    table = numbers.soft_targets(5.0)
    totals = table.sum(dim=-1)
    assert bool((((totals - 1).abs() < 1e-5) | (totals == 0)).all())
    for place in (INTEGER, FIRST, SECOND):
        assert torch.allclose(totals[place, :1000], torch.ones(1000), atol=1e-5)


def test_narrow_targets_are_the_digits_themselves() -> None:
    table = numbers.soft_targets(0.0)
    assert table[FIRST, 456].argmax() == 4
    assert table[SECOND, 456].argmax() == 5
    assert table[THIRD, 456].argmax() == 6
    assert table[SECOND, 500].argmax() == TERMINATOR
    assert table[THIRD, 450].argmax() == TERMINATOR
    assert float(table.max(dim=-1).values[FIRST:THIRD, 1:1000].min()) == 1.0


def test_wide_targets_spread_over_neighbouring_numbers() -> None:
    """0.499 and 0.500 are one thousandth apart: both leading digits must carry mass."""
    row = numbers.soft_targets(10.0)[FIRST, 499]
    assert 0.4 < float(row[4]) < 0.6
    assert 0.4 < float(row[5]) < 0.6
    assert float(row[:4].sum()) < 1e-3


def test_tokenizer_splits_answers_and_phrases_as_qwen_does(tokenizer: Tokenizer) -> None:
    qwen = Tokenizer.from_file(str(qwen_tokenizer_file()))
    rng = np.random.default_rng(0)
    for _ in range(200):
        points = np.round(rng.random((int(rng.integers(3, 9)), 2)), 3).tolist()
        for text in (f"{[points]}.", f"{[points, points]}", "[].", f"{points[0]}."):
            assert tokenizer.encode(text).tokens == qwen.encode(text).tokens
    for text in tokenizer_corpus():
        if "<|" not in text:
            assert tokenizer.encode(text).tokens == qwen.encode(text).tokens


def test_any_text_encodes_and_decodes(tokenizer: Tokenizer) -> None:
    for text in ("Où est le chat ?", "左边的狗", "🙂 <b>", "0.1234567"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
