"""Learn how outlines go on: the statistics that ``simpleseg_polygon.forecast`` drafts by.

    python -m simpleseg_training.outline_statistics OUTPUT.npz [--scenes 7000] [--steps 20000]

Outlines come from training scenes only, drawn at many sizes and simplified by many tolerances, in
both conventions of ``simpleseg_polygon.contour``, half of them mirrored or turned. Takes minutes on
a CPU.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from simpleseg_polygon.contour import region_from_mask, released_region_from_mask
from simpleseg_polygon.forecast import FEATURES, LEAST_LOG_SCALE, Trail, Vertex, features
from simpleseg_polygon.geometry import Region
from simpleseg_training.examples import region_label
from simpleseg_training.scenes import SPLITS, render_scene

Ring = list[Vertex]

FIRST_SEED = SPLITS["train"].start + 5_000_000
SIZES_PX = (96, 128, 200, 256, 320, 480, 640)
LOG_EPSILON_RANGE = (math.log(0.001), math.log(0.02))
DEMO_PX = 128
DEMO_COUNT = 2  # counts for more: what the shipped model writes
MIN_PART_AREA_PX = 8
COMPONENTS = 6
HIDDEN = 64
BATCH = 2048
PEAK_RATE = 3e-3
WARM_UP_STEPS = 100


def outlines(rng: Generator, scenes: int) -> Iterator[Ring]:
    """Every ring of the scenes' masks; a third of the scenes as the demo model learns them."""
    for number in range(scenes):
        is_demo = number % 3 == 0
        size_px = DEMO_PX if is_demo else int(rng.choice(SIZES_PX))
        for mask_hw in render_scene(FIRST_SEED + number, 1, 4, size_px).masks_hw:
            if is_demo:
                yield from _rings(rng, region_label(mask_hw), count=DEMO_COUNT)
                continue
            ratio, other = np.exp(rng.uniform(*LOG_EPSILON_RANGE, 2)).tolist()
            region = region_from_mask(
                mask_hw, epsilon_ratio=ratio, min_part_area_px=MIN_PART_AREA_PX
            )
            yield from _rings(rng, region)
            if rng.random() < 0.5:
                yield from _rings(rng, released_region_from_mask(mask_hw, epsilon_ratio=other))


def _rings(rng: Generator, region: Region, count: int = 1) -> Iterator[Ring]:
    for part in region.parts:
        ring = [(round(1000 * x), round(1000 * y)) for x, y in part]
        if len(ring) >= 3:
            yield from (_turned(rng, ring) for _ in range(count))


def _turned(rng: Generator, ring: list[tuple[int, int]]) -> Ring:
    """In half of the cases as it is, else mirrored and turned by any multiple of 90 degrees."""
    if rng.random() < 0.5:
        return list(ring)
    flips = rng.random(3) < 0.5
    ring = [(1000 - x if flips[0] else x, 1000 - y if flips[1] else y) for x, y in ring]
    return [(y, x) if flips[2] else (x, y) for x, y in ring]


class Examples:
    """Every place of every ring: what is known there, where the outline goes, and whether it ends.

    A long ring's places count for less, by the root of its length.
    """

    def __init__(self, rings: list[Ring]) -> None:
        inputs, steps, ways, weights = [], [], [], []
        for ring in rings:
            trail = Trail.of(ring[:1])
            for target in [*ring[1:], None]:
                values, step = features(trail)
                inputs.append(values)
                steps.append(step)
                x, y = trail.tail[-1]
                ways.append((0, 0, 1) if target is None else (target[0] - x, target[1] - y, 0))
                weights.append(len(ring) ** -0.5)
                trail = trail if target is None else trail.then(target)
        self.inputs, self.steps = torch.tensor(inputs), torch.tensor(steps)
        self.ways, self.weights = torch.tensor(ways, dtype=torch.float), torch.tensor(weights)


def log_mass(value: Tensor, centre: Tensor, log_scale: Tensor) -> Tensor:
    """The logarithm of a logistic distribution's mass within half a unit of a whole number."""
    sharpness = torch.exp(-log_scale)
    below = torch.sigmoid((value - 0.5 - centre) * sharpness)
    mass = torch.sigmoid((value + 0.5 - centre) * sharpness) - below
    off = (value - centre) * sharpness
    density = -log_scale - softplus(-off) - softplus(off)  # where the difference loses its digits
    return torch.where(mass > 1e-5, mass.clamp_min(1e-12).log(), density)


def loss(output: Tensor, ways: Tensor, steps: Tensor, weights: Tensor) -> Tensor:
    """Nats per place; the outputs are those that ``simpleseg_polygon.forecast.Forecast`` reads."""
    step = steps[:, None]
    logit, x, y, width_x, width_y, slope = output[:, :-1].reshape(len(output), 6, -1).unbind(1)
    widths = (torch.stack([width_x, width_y]) + torch.log(step) - 1).clamp_min(LEAST_LOG_SCALE)
    away = ways[:, :1] - x * step
    mass = log_mass(ways[:, :1], x * step, widths[0])
    mass = mass + log_mass(ways[:, 1:2], y * step + slope * away, widths[1])
    of_vertex = -torch.logsumexp(torch.log_softmax(logit, 1) + mass, 1)
    ends = ways[:, 2]
    of_end = binary_cross_entropy_with_logits(output[:, -1], ends, reduction="none")
    return (weights * ((1 - ends) * of_vertex + of_end)).sum() / weights.sum()


def new_network() -> nn.Sequential:
    last = nn.Linear(HIDDEN, 6 * COMPONENTS + 1)
    with torch.no_grad():
        last.weight.mul_(0.5)
        last.bias[COMPONENTS : 3 * COMPONENTS].normal_(0, 0.7)  # components begin apart
    first, second = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)


def fit(examples: Examples, steps: int) -> nn.Sequential:
    network = new_network()
    optimizer = torch.optim.Adam(network.parameters())
    for number in range(steps):
        rate = PEAK_RATE * min(1, number / WARM_UP_STEPS)
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * number / steps)) / 2
        chosen = torch.randint(len(examples.steps), (BATCH,))
        nats = loss(
            network(examples.inputs[chosen]),
            examples.ways[chosen],
            examples.steps[chosen],
            examples.weights[chosen],
        )
        optimizer.zero_grad()
        torch.autograd.backward(nats)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if number % 500 == 0:
            print(f"step {number}: {nats.item():.3f} nats", flush=True)
    return network


def save(network: nn.Sequential, file: Path) -> None:
    """Matrices as (inputs, outputs) and biases in half precision, in the order of the layers."""
    arrays = [p.detach().numpy().T.astype(np.float16) for p in network.parameters()]
    np.savez_compressed(file, *arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn how outlines go on.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--scenes", type=int, default=7000)
    parser.add_argument("--steps", type=int, default=20000)
    options = parser.parse_args()
    torch.manual_seed(0)
    examples = Examples(list(outlines(np.random.default_rng(0), options.scenes)))
    print(f"{len(examples.steps)} places")
    save(fit(examples, options.steps), options.output)


if __name__ == "__main__":
    main()
