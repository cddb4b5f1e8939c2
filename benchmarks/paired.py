"""What training changed: two checkpoints on the same held-out scenes.

    python benchmarks/paired.py BEFORE AFTER [--quick] [--json] [--limit 500] [--target box]

Greedy answers without the grammar, in float32. Both are asked the same questions, for regions or
boxes, so that the difference has a standard error of its own, smaller than that of either mean. The
last line printed with ``--json`` is one object: hardware, and for each data set ``n``, ``before``
and ``after`` (mean IoU), ``difference`` with its ``standard_error`` and ``interval`` (95 %,
bootstrap over scenes), and of both the mean ``characters``, the share of ``valid`` answers, and how
often ``absent`` objects were called so and present ones called absent, with the IoU of the latter.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from provenance import provenance

from simpleseg_training.pairs import Pair, held_out
from simpleseg_training.processing import load_start
from simpleseg_training.rewards import (
    format_reward,
    is_nowhere,
    overlap_reward,
    says_nowhere,
)
from simpleseg_training.rollout import chat_answers
from simpleseg_training.train_config import ModelConfig

DATA = ("demo-single", "demo-multi", "demo-hard")


def answers(model: Path, pairs: list[Pair], batch: int = 50) -> list[str]:
    start = load_start(ModelConfig(path=str(model)))
    start.model.eval()
    images = [start.fitted(pair.image) for pair in pairs]
    asked = [pair.instruction for pair in pairs]
    return chat_answers(start.model, start.processor, images, asked, 300, batch)


def compare(before: list[str], after: list[str], pairs: list[Pair]) -> dict[str, Any]:
    """The figures of one data set."""
    truths = [pair.truth for pair in pairs if pair.truth is not None]
    overlaps = np.array(
        [
            [overlap_reward(t, truth) for t, truth in zip(texts, truths, strict=True)]
            for texts in (before, after)
        ]
    )
    change = overlaps[1] - overlaps[0]
    is_absent = np.array([is_nowhere(truth) for truth in truths])
    called = np.array([[says_nowhere(t) for t in texts] for texts in (before, after)])
    return {
        "n": len(truths),
        "before": round(float(overlaps[0].mean()), 4),
        "after": round(float(overlaps[1].mean()), 4),
        "difference": round(float(change.mean()), 4),
        "standard_error": round(float(change.std(ddof=1)) / math.sqrt(len(change)), 4),
        "interval": bootstrap(change),
        "characters": [
            round(float(np.mean([len(t) for t in texts])), 1) for texts in (before, after)
        ],
        "valid": [
            round(
                float(np.mean([format_reward(t, u) for t, u in zip(texts, truths, strict=True)])), 4
            )
            for texts in (before, after)
        ],
        "absent": int(is_absent.sum()),
        "absent_called_so": means(called[:, is_absent]),
        "present_called_absent": means(called[:, ~is_absent]),
        "iou_of_present": means(overlaps[:, ~is_absent]),
    }


def means(of_each: NDArray[Any]) -> list[float]:
    """Before and after; nothing where there are no such scenes."""
    return [round(float(row.mean()), 4) for row in of_each if len(row)]


def bootstrap(change: NDArray[np.float64], draws: int = 10_000) -> list[float]:
    """The middle 95 % of the means of as many scenes, drawn again and again from these."""
    rng = np.random.default_rng(0)
    means = change[rng.integers(len(change), size=(draws, len(change)))].mean(axis=1)
    return [round(float(bound), 4) for bound in np.quantile(means, (0.025, 0.975))]


def main() -> None:
    parser = argparse.ArgumentParser(description="Two checkpoints on the same held-out scenes.")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--quick", action="store_true", help="10 scenes of each data set")
    parser.add_argument("--json", action="store_true", help="print one JSON object, last")
    parser.add_argument("--limit", type=int, default=500, help="scenes of each data set")
    parser.add_argument("--target", choices=("region", "box"), default="region")
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads that wait for each other are slower on a busy machine
    limit = 10 if options.quick else options.limit
    models = f"{options.before}, {options.after}"
    inputs = f"{', '.join(DATA)} test, {limit} cases each"
    said = provenance("torch", "transformers", model=models, inputs=inputs)
    results = {}
    for data in DATA:
        pairs = held_out(data, limit, "test", options.target)
        results[data] = compare(
            answers(options.before, pairs), answers(options.after, pairs), pairs
        )
        if not options.json:
            print(data, results[data], flush=True)
    if options.json:
        print(json.dumps({**said, "results": results}))


if __name__ == "__main__":
    main()
