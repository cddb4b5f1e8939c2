"""Muon in float32 is torch's Muon, but for bfloat16's rounding."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Muon

from simpleseg_training import optimizer
from simpleseg_training.optimizer import FloatMuon, muon


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_a_step_is_that_of_torch(shape: tuple[int, int]) -> None:
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ends = []
    for made in (Muon, FloatMuon):
        weight = nn.Parameter(start.clone())
        steps: Any = made([weight], lr=0.1, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
        for seed in (1, 2, 3):
            weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
            steps.step()
        ends.append(weight.detach())
    moved = (ends[0] - start).norm()
    assert moved > 1
    assert (ends[0] - ends[1]).norm() < 0.02 * moved


def test_a_cpu_without_bfloat16_gets_the_one_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [nn.Parameter(torch.zeros(2, 3))]
    for is_fast, kind in ((True, Muon), (False, FloatMuon)):
        monkeypatch.setattr(optimizer, "multiplies_bfloat16", lambda _, fast=is_fast: fast)
        assert type(muon(weights, 0.1, 0.0)) is kind
