"""Scenes per second and core: drawing at the training size, and drawing with three questions.

    python benchmarks/scenes.py [--quick] [--json]

The last line printed with ``--json`` is one object; higher is better.
"""

import argparse
import json
import time

import numpy as np
from provenance import provenance

from simpleseg_training.examples import make_examples
from simpleseg_training.scenes import SPLITS, render_scene

SIZE_PX = 128
QUESTIONS = 3


def scenes_per_second(count: int, questions: int) -> float:
    """Of this process's CPU time, so that other work on the machine does not count."""
    start = time.process_time()
    for seed in range(SPLITS["train"].start, SPLITS["train"].start + count):
        rendering = render_scene(seed, 1, 6, SIZE_PX)
        if questions:
            make_examples(np.random.default_rng(seed), rendering, questions)
    return count / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description="Scenes per second and core.")
    parser.add_argument("--quick", action="store_true", help="fewer scenes")
    parser.add_argument("--json", action="store_true", help="print one JSON object, last")
    options = parser.parse_args()
    count = 500 if options.quick else 3000
    scenes_per_second(50, QUESTIONS)  # warm up
    figures = {
        **provenance("numpy", "opencv-python-headless", model=None, inputs=f"{SIZE_PX} px scenes"),
        "scenes_per_s": round(scenes_per_second(count, 0), 1),
        "scenes_with_questions_per_s": round(scenes_per_second(count, QUESTIONS), 1),
    }
    if options.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name}: {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
