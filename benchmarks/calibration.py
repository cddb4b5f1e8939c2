"""How far the shipped model's score is to be trusted: ``simpleseg calibrate`` on held-out scenes.

    python benchmarks/calibration.py [--quick] [--json] [--limit 667] [--model FOLDER]

Answers to scenes that training never saw; the score is fitted to every second one of them and
measured on the others. With ``--model`` the fitted weights are written into that checkpoint, and
the diagram of expected against true IoU beside them. The last line printed with ``--json`` is one
object: machine, versions, and for region and box ``n`` (answers measured), ``error`` (expected
calibration error), ``correlation`` and the diagram's bins.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from provenance import provenance

DIAGRAM = "reliability.png"


def calibrate(limit: int, model: Path | None) -> dict[str, Any]:
    command = [sys.executable, "-m", "simpleseg.cli", "calibrate", "--limit", str(limit)]
    if model is not None:
        command += ["--model", str(model), "--write", str(model)]
        command += ["--diagram", str(model / DIAGRAM)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    report: dict[str, Any] = json.loads(
        done.stdout.splitlines()[-1], parse_float=lambda number: round(float(number), 4)
    )
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description="The score of the shipped model, measured.")
    parser.add_argument("--quick", action="store_true", help="20 scenes of each data set")
    parser.add_argument("--json", action="store_true", help="print one JSON object, last")
    parser.add_argument("--limit", type=int, default=667, help="scenes of each data set")
    parser.add_argument("--model", type=Path, help="the checkpoint to measure and to write into")
    options = parser.parse_args()
    limit = 20 if options.quick else options.limit
    model = "simpleseg-demo" if options.model is None else options.model.name
    inputs = f"held-out scenes, {limit} of each data set"
    said = provenance("torch", "transformers", model=model, inputs=inputs)
    report = calibrate(limit, options.model)
    if options.json:
        print(json.dumps({**said, **report}))
        return
    for task in ("region", "box"):
        found = report[task]
        print(f"{task}: {found['n']} answers, calibration error {found['error']}")


if __name__ == "__main__":
    main()
