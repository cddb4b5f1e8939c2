"""Damaged image files are answered or refused, and nothing else happens."""

import os
from collections import Counter

import pytest

from ..times import TIMES
from .canary import Canary
from .image_bombs import code_of, post
from .image_mutants import mutants

CODES = {
    "image_aspect_ratio",
    "image_decode_failed",
    "image_decode_timeout",
    "image_dimensions_invalid",
    "image_empty",
    "image_metadata_too_large",
    "image_too_many_pixels",
    "image_truncated",
    "image_type_unsupported",
}
STATUSES = {"image_type_unsupported": 415, "": 200}
SECTION = 500


def fuzz(canary: Canary, count: int, seed: int) -> Counter[str]:
    """How mutants were answered; "" are those that were read. The fixture looks for what leaks."""
    found: Counter[str] = Counter()
    for data in mutants(count, seed):
        response = post(canary, data)
        code = code_of(response)
        assert code in CODES | {""}, (response.status_code, data)
        assert response.status_code == STATUSES.get(code, 422), data
        found[code] += 1
    return found


def check(canary: Canary, found: Counter[str]) -> None:
    """Both kinds of answer came, and no mutant has broken a decoder."""
    assert found[""] > found.total() / 50
    assert found["image_decode_failed"] > found.total() / 50
    assert 'simpleseg_decoder_deaths_total{reason="crash"}' not in canary.metrics()


@pytest.mark.catalogue("A2", "A3", "A24")
def test_image_mutants(canary: Canary) -> None:
    check(canary, fuzz(canary, 600, seed=1))


@pytest.mark.slow
def test_many_image_mutants(canary: Canary) -> None:
    """``make fuzz-images``; FUZZ_TIMES and IMAGE_MUTANTS_SEED say how many, and which."""
    count = 50_000 * TIMES
    first = int(os.environ.get("IMAGE_MUTANTS_SEED", "0"))
    found: Counter[str] = Counter()
    for section in range(count // SECTION):
        found += fuzz(canary, SECTION, seed=first + section)
    check(canary, found)
    # One that says that it has nearly all the pixels that are allowed may take all of its time.
    canary.may_restart = 'simpleseg_decoder_deaths_total{reason="timeout"}' in canary.metrics()
    print(f"{found.total()} mutants, none with another answer than these: {dict(found)}")
