"""References -> instruction pairs: the paper's 800k for fine-tuning and 400k prompts for
reinforcement learning (arXiv 2601.19228), or any other number."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.random import Generator

from simpleseg_polygon.rle import mask_to_rle
from simpleseg_training.contours import Contours
from simpleseg_training.recombine import Example, Thing, pose, recombine
from simpleseg_training.records import Record
from simpleseg_training.refcoco import (
    Reference,
    SetName,
    held_out_images,
    in_split,
    read_references,
)

Kind = Literal["sft", "rl"]
PAIRS_PER_PHRASE: dict[Kind, int] = {"sft": 2, "rl": 1}
"""The four train splits hold about 400,000 phrases: 800k pairs and 400k prompts."""


@dataclass(frozen=True)
class Wanted:
    """What is made. ``sft`` recombines [text, point, box, region]; ``rl`` asks every phrase for its
    region and has the true mask. References are shuffled by ``seed``, so that ``limit`` takes from
    all sets."""

    kind: Kind
    pairs_per_phrase: int | None = None
    limit: int | None = None
    contours: Contours = field(default_factory=Contours)
    seed: int = 0


@dataclass
class Passed:
    """What was left out, by reason."""

    held_out_elsewhere: int = 0
    empty_mask: int = 0
    no_phrase: int = 0


def collect(
    root: Path, sets: Sequence[tuple[SetName, str | None]], split: str, images: Path | None = None
) -> tuple[list[Reference], Passed]:
    """The references of a split of several sets, each (name, split by). Of ``train`` those are left
    out whose picture another of the sets holds out."""
    everything = [read_references(root, name, by, images) for name, by in sets]
    chosen = [ref for references in everything for ref in in_split(references, split)]
    if split != "train":
        return chosen, Passed()
    held_out = set().union(*map(held_out_images, everything))
    kept = [ref for ref in chosen if ref.image not in held_out]
    return kept, Passed(held_out_elsewhere=len(chosen) - len(kept))


def make_records(
    references: Sequence[Reference],
    wanted: Wanted,
    passed: Passed,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Record]:
    """Pairs in a shuffled order; ``passed`` is counted up, ``progress`` is called with (references
    done, of how many). The same arguments give the same pairs."""
    return islice(_records(references, wanted, passed, progress), wanted.limit)


def _records(
    references: Sequence[Reference],
    wanted: Wanted,
    passed: Passed,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Record]:
    order = np.random.default_rng(wanted.seed).permutation(len(references))
    for done, i in enumerate(order.tolist(), start=1):
        yield from _of_reference(references[i], wanted, passed)
        if progress is not None:
            progress(done, len(references))


def _of_reference(ref: Reference, wanted: Wanted, passed: Passed) -> Iterator[Record]:
    phrases = [phrase for phrase in ref.phrases if phrase]
    mask = ref.mask()
    if not phrases:
        passed.no_phrase += 1
    elif not mask.any():
        passed.empty_mask += 1
    else:
        digest = blake2b(f"{wanted.seed} {ref.id}".encode(), digest_size=8).digest()
        rng = np.random.default_rng(int.from_bytes(digest))
        thing = Thing(mask, wanted.contours)
        truth = mask_to_rle(mask) if wanted.kind == "rl" else None
        for number, made in enumerate(_examples(rng, thing, phrases, wanted)):
            yield Record(
                ref.image, made.instruction, made.answer, made.task, f"{ref.id}-{number}", truth
            )


def _examples(
    rng: Generator, thing: Thing, phrases: Sequence[str], wanted: Wanted
) -> list[Example]:
    each = wanted.pairs_per_phrase or PAIRS_PER_PHRASE[wanted.kind]
    if wanted.kind == "sft":
        return recombine(rng, thing, phrases, each * len(phrases))
    return [
        pose(rng, ("text", "region"), said, thing, said) for said in phrases for _ in range(each)
    ]
