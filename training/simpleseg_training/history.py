"""The record of a pretraining: one run, or several of which each went on from the last one's
weights."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class History:
    """``recipes`` of the runs in order, how many ``images`` each saw, and all their log records,
    in which ``images`` counts from the first run's start."""

    recipes: tuple[dict[str, Any], ...]
    images: tuple[int, ...]
    records: tuple[dict[str, Any], ...]


def read_history(runs: Sequence[Path]) -> History:
    """From the folders of the runs. Raises OSError where a file is missing."""
    recipes: list[dict[str, Any]] = []
    images: list[int] = []
    joined: list[dict[str, Any]] = []
    for run in runs:
        recipe = json.loads((run / "recipe.json").read_text())
        records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        # A run that goes on from weights counts from halfway through its curriculum.
        first = recipe["images"] // 2 if recipe.get("start_from") else 0
        joined += [r | {"images": r["images"] - first + sum(images)} for r in records]
        images.append(records[-1]["images"] - first)
        recipes.append(recipe)
    return History(tuple(recipes), tuple(images), tuple(joined))
