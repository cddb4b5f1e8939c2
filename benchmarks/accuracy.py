"""A model of the demo world on held-out scenes: ``simpleseg eval`` on every demo data set.

    python benchmarks/accuracy.py [--quick] [--json] [--limit 500] [--pictures FOLDER]
                                  [--model DIR] [--stress FOLDER]

``--stress FOLDER`` measures ``demo-stress`` with the font and photographs in that folder instead.
The last line printed with ``--json`` is one object: machine, versions, and for each data set the
metrics of ``simpleseg eval``. ``--pictures`` keeps a picture of each data set's worst answers.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from provenance import provenance

DATA = ("demo-single", "demo-multi", "demo-hard")


def evaluate(data: str, limit: int, pictures: Path | None, model: Path | None) -> dict[str, Any]:
    command = [sys.executable, "-m", "simpleseg.cli", "eval", "--data", data]
    command += ["--limit", str(limit), "--json"]
    if model is not None:
        command += ["--model", str(model)]
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        command += ["--failures", str(pictures / f"failures-{data.partition(':')[0]}.png")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    metrics: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    metrics["data"] = data.partition(":")[0]
    return {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in metrics.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="The shipped model on held-out scenes.")
    parser.add_argument("--quick", action="store_true", help="10 cases of each data set")
    parser.add_argument("--json", action="store_true", help="print one JSON object, last")
    parser.add_argument("--limit", type=int, default=500, help="cases of each data set")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of the worst answers")
    parser.add_argument("--model", type=Path, help="a checkpoint in place of the shipped one")
    parser.add_argument("--stress", help="folder of demo-stress: a font and photographs")
    options = parser.parse_args()
    limit = 10 if options.quick else options.limit
    data_sets = (f"demo-stress:{options.stress}",) if options.stress else DATA
    inputs = f"{', '.join(d.partition(':')[0] for d in data_sets)} test, {limit} cases each"
    name = "simpleseg-demo" if options.model is None else options.model.name
    said = provenance("torch", "transformers", model=name, inputs=inputs)
    results = {
        data.partition(":")[0]: evaluate(data, limit, options.pictures, options.model)
        for data in data_sets
    }
    if not options.json:
        for data, metrics in results.items():
            print(data)
            print("\n".join(f"  {name:<20} {value}" for name, value in metrics.items()))
        return
    print(json.dumps({**said, "results": results}))


if __name__ == "__main__":
    main()
