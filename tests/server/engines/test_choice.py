"""How a token is chosen from logits."""

import sys

import numpy as np
import pytest

from simpleseg_server.engines.answers import Choice


@pytest.mark.parametrize("temperature", [0.0, 5e-324, sys.float_info.min, 1e-300, 1e-6])
@pytest.mark.parametrize("largest", [-40.0, 0.0, 40.0])
def test_next_to_temperature_0_the_likeliest_is_chosen(temperature: float, largest: float) -> None:
    logits = np.array([largest - 1, largest, largest - 30], np.float32)
    chosen, log_prob = Choice(temperature, seed=0).pick(logits)
    assert chosen == 1
    assert log_prob == pytest.approx(-np.log(1 + np.exp(-1)), abs=1e-6)


def test_at_temperature_1_draws_have_the_probabilities_of_the_logits() -> None:
    choice = Choice(1.0, seed=3)
    logits = np.log(np.array([0.2, 0.5, 0.3], np.float32))
    shares = np.bincount([choice.pick(logits)[0] for _ in range(4000)]) / 4000
    assert shares == pytest.approx([0.2, 0.5, 0.3], abs=0.04)
