"""Numbers as sequences of digit tokens: where they are, and number-level soft targets.

One digit a token gives plain cross-entropy no metric: 0.499 and 0.500 share no digit. Here each
digit is trained towards the conditional mass of a Gaussian around the true number, given the
digits already written, so that near misses cost little and doubt is spread over neighbours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from simpleseg_training.tokenizer import token_id

SCALE = 1000  # numbers are counted in thousandths, 0 to 1000

# What the token at a position is within its number.
OUTSIDE, INTEGER, POINT, FIRST, SECOND, THIRD = range(6)
ENDED = 6
"""The token after a number of three decimals: certain, no soft target."""
TERMINATOR = 10
"""Class of 'the number ends here' beside the ten digits."""
CLASSES = 11


@dataclass(frozen=True)
class NumberSpans:
    """Over a token sequence: ``places`` names the part of a number that each token is, ``values``
    the number it belongs to, in thousandths.

    The token that follows a number of fewer than three decimals stands at the place where the next
    digit would have been (its class is TERMINATOR).
    """

    values: NDArray[np.int64]
    places: NDArray[np.int64]

    @staticmethod
    def concatenated(spans: Sequence["NumberSpans"]) -> "NumberSpans":
        return NumberSpans(
            np.concatenate([span.values for span in spans]),
            np.concatenate([span.places for span in spans]),
        )

    @staticmethod
    def finder(tokenizer: Tokenizer) -> Callable[[Sequence[int]], "NumberSpans"]:
        """A function that finds the numbers in the token ids of an answer."""
        digits = {token_id(tokenizer, str(d)): d for d in range(10)}
        point = token_id(tokenizer, ".")
        return lambda ids: _find(ids, digits, point)


def no_numbers(length: int) -> NumberSpans:
    return NumberSpans(np.zeros(length, np.int64), np.zeros(length, np.int64))


def _find(ids: Sequence[int], digits: dict[int, int], point: int) -> NumberSpans:
    spans = no_numbers(len(ids))
    i = 0
    while i < len(ids) - 2:
        if ids[i] not in digits or ids[i + 1] != point:
            i += 1
            continue
        end = i + 2
        value = digits[ids[i]] * SCALE
        while end < len(ids) and ids[end] in digits and end < i + 5:
            value += digits[ids[end]] * 10 ** (4 - (end - i))
            end += 1
        spans.places[i : end + 1] = np.arange(INTEGER, INTEGER + end + 1 - i)
        spans.values[i : end + 1] = value
        i = end
    return spans


def soft_targets(sigma: float) -> Tensor:
    """Target distributions for every place and number: shape (7, 1001, 11), float32.

    ``sigma`` is the Gaussian's deviation in thousandths. Rows of places without a soft target are
    zero. The row of a place holds the mass of all numbers that share the digits before it.
    """
    numbers = np.arange(SCALE + 1)
    weight = np.exp(-((numbers[:, None] - numbers[None]) ** 2) / (2 * max(sigma, 1e-3) ** 2))
    table = np.zeros((ENDED + 1, SCALE + 1, CLASSES))
    prefixes = {
        INTEGER: np.zeros_like(numbers),
        FIRST: numbers // 1000,
        SECOND: numbers // 100,
        THIRD: numbers // 10,
    }
    for place, prefix in prefixes.items():
        classes = _class_at(place, numbers)
        consistent = (prefix[:, None] == prefix[None]) & (classes >= 0)[None]
        mass = weight * consistent
        for label in range(CLASSES):
            table[place, :, label] = mass[:, classes == label].sum(axis=1)
    total = table.sum(axis=-1, keepdims=True)
    return torch.from_numpy(np.divide(table, total, out=table, where=total > 0)).float()


def _class_at(place: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """The class of each number's token at a place, -1 where the number has ended before."""
    if place == INTEGER:
        return numbers // 1000
    if place == FIRST:
        return numbers // 100 % 10
    if place == SECOND:
        return np.where(numbers % 100 == 0, TERMINATOR, numbers // 10 % 10)
    ended = np.where(numbers % 100 == 0, -1, TERMINATOR)
    return np.where(numbers % 10 == 0, ended, numbers % 10)
