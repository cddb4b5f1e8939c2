"""Muon for hidden matrices, AdamW for embeddings, norms, biases and the auxiliary heads."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

MUON_RATE = 3e-3
ADAMW_RATE = 2e-3


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16 itself; a CPU that does not takes 25 times as long
    as in float32."""
    return device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()


class FloatMuon(Muon):
    """torch's Muon, whose Newton-Schulz iteration runs in the gradient's type, not in bfloat16."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average: Tensor = state["momentum_buffer"]
        average.lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(average, group["momentum"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        rate = group["lr"] * 0.2 * math.sqrt(max(parameter.shape))  # match_rms_adamw
        parameter.add_(_orthogonal(update, group), alpha=-rate)


def _orthogonal(matrix: Tensor, group: Mapping[str, Any]) -> Tensor:
    """Near the matrix whose singular values are all 1, by Newton-Schulz."""
    near = matrix.T if matrix.size(0) > matrix.size(1) else matrix
    near = near / near.norm().clamp(min=group["eps"])
    a, b, c = group["ns_coefficients"]
    for _ in range(group["ns_steps"]):
        gram = near @ near.T
        near = torch.addmm(near, torch.addmm(gram, gram, gram, beta=b, alpha=c), near, beta=a)
    return near.T if matrix.size(0) > matrix.size(1) else near


def muon(matrices: Sequence[nn.Parameter], rate: float, weight_decay: float) -> Optimizer:
    """Muon with AdamW's scale of learning rates, in the type that the matrices' device is fast
    in."""
    made = Muon if not matrices or multiplies_bfloat16(matrices[0].device) else FloatMuon
    return made(matrices, lr=rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")


def make_optimizers(model: nn.Module, heads: nn.Module) -> tuple[Optimizer, ...]:
    """Two optimizers that together hold every trainable parameter once."""
    matrices = [p for name, p in model.named_parameters() if _is_hidden_matrix(name, p)]
    chosen = set(map(id, matrices))
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return (
        muon(matrices, MUON_RATE, weight_decay=0.01),
        AdamW([*rest, *heads.parameters()], lr=ADAMW_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    )


def _is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and "embed" not in name and "lm_head" not in name


def rate_factor(
    step: int, progress: float, warmup_steps: int = 60, decay_from: float = 0.7
) -> float:
    """Warm up, hold, then fall along a half cosine from ``decay_from`` of the run to its end."""
    if progress <= decay_from:
        return min(1.0, (step + 1) / warmup_steps)
    left = (1 - min(progress, 1.0)) / (1 - decay_from)
    return max(0.01, 0.5 - 0.5 * math.cos(math.pi * left))


def set_rates(optimizers: tuple[Optimizer, ...], factor: float) -> None:
    for optimizer, rate in zip(optimizers, (MUON_RATE, ADAMW_RATE), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * factor


def parameters(optimizers: tuple[Optimizer, ...]) -> Iterator[Tensor]:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            yield from group["params"]


class Joined(Optimizer):
    """Several optimizers as one, as trainers want them; all take one learning rate.

    Groups and states are shared with the parts, not copied: rates that a scheduler sets, weights
    that FSDP puts in place of others, and states that are loaded, reach the parts.
    """

    def __init__(self, parts: Sequence[Optimizer], rate: float) -> None:
        self._parts = tuple(parts)
        super().__init__([group for part in parts for group in part.param_groups], {"lr": rate})
        self._share()

    def _share(self) -> None:
        first = 0
        for part in self._parts:
            last = first + len(part.param_groups)
            part.param_groups = self.param_groups[first:last]
            part.state = self.state
            first = last

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self._parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()


def muon_and_adamw(model: nn.Module, rate: float, weight_decay: float) -> Joined:
    """Muon for the trainable hidden matrices, AdamW for the other trainable weights."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trained if _is_hidden_matrix(name, p)]
    rest = [p for name, p in trained if not _is_hidden_matrix(name, p)]
    parts: list[Optimizer] = []
    if matrices:
        parts.append(muon(matrices, rate, weight_decay))
    if rest:
        parts.append(AdamW(rest, lr=rate, weight_decay=0.0))
    return Joined(parts, rate)
