"""Contour drafting: what it saves, in steps and in time, and that it changes no answer.

    python benchmarks/drafting.py [--engine NAME] [--quick] [--json] [--limit N]

``replay`` measures every way to draft on given outlines, without a model (``drafting_replay.py``);
``embedded`` and ``vllm`` answer held-out scenes with the demo model, greedily, in float32, with
drafts and without by turns (``drafting_engines.py``); ``modes`` compares drafts off, of structure,
and of structure and digits, with the grammar off and on, in the embedded engine
(``drafting_modes.py``; its ``plain`` is without drafts, with the grammar). ``--limit`` is how many
answers of a kind.
With ``--json`` the last line printed is one object.
"""

import argparse
import json

from provenance import provenance

LIMIT, QUICK_LIMIT = {"replay": 150, "embedded": 200, "vllm": 200, "modes": 60}, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--engine", choices=sorted(LIMIT), default="replay")
    parser.add_argument("--json", action="store_true", help="print one object on the last line")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_LIMIT} answers of a kind")
    parser.add_argument("--limit", type=int, help="answers of a kind")
    options = parser.parse_args()
    limit = options.limit or (QUICK_LIMIT if options.quick else LIMIT[options.engine])
    # What is imported depends on what is installed.
    if options.engine == "replay":
        from drafting_replay import replay

        inputs = "outlines of held-out scenes, drawn shapes and photographs"
        figures = provenance("numpy", "tokenizers", model=None, inputs=inputs)
        figures["results"] = replay(limit)
    elif options.engine == "modes":
        from drafting_modes import measure_modes

        figures = measure_modes(limit)
    else:
        from drafting_engines import measure

        figures = measure(options.engine, limit)
    if options.json:
        print(json.dumps(figures))
    elif options.engine != "replay":  # which prints as it goes
        print("\n".join(f"{name}: {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
