"""What a fixed order of the vertices is worth: the same short pretraining with each order.

    python benchmarks/order.py --out RUNS [--quick] [--json] [--images 20000] [--processes 2]

Every run starts from scratch with the same seed and scenes, and ends with the same held-out
validation scenes, answered greedily without the grammar. A run that is in RUNS already is not made
again; one that was stopped goes on. The last line printed with ``--json`` is one object: machine,
versions, and for each order the end of its log (``evaluation``, of ``demo-single`` and
``demo-multi``, and the losses of the last steps).
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from provenance import provenance

from simpleseg_training.contours import ORDERS

QUICK = ("--images", "64", "--batch-images", "4", "--limit", "2")


def trained(order: str, out: Path, processes: int, options: list[str]) -> dict[str, Any]:
    """What the log of the run with this order says at its end."""
    folder = out / order
    if not (folder / "done").exists():
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        run = ["-m", "simpleseg_training.pretrain", "--out", str(folder), "--order", order]
        # A thread for each process: those that wait for each other cost more than they give.
        calm = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        subprocess.run(
            [sys.executable, *launch, *run, *options], check=True, env={**os.environ, **calm}
        )
        (folder / "done").touch()
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    ends = {"evaluation": records[-1]["evaluation"], "images": records[-1]["images"]}
    return ends | {"losses": next((r for r in reversed(records) if "answer" in r), None)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Ablation of the order of vertices.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--images", type=int, default=20_000, help="drawn scenes of each run")
    parser.add_argument("--processes", type=int, default=2, help="that train together")
    parser.add_argument("--quick", action="store_true", help="a few small steps")
    parser.add_argument("--json", action="store_true", help="print one JSON object, last")
    options = parser.parse_args()
    chosen = list(QUICK) if options.quick else ["--images", str(options.images)]
    said = provenance("torch", "transformers", model="from scratch", inputs="drawn scenes")
    results = {order: trained(order, options.out, options.processes, chosen) for order in ORDERS}
    if options.json:
        print(json.dumps({**said, "results": results}))
        return
    for order, found in results.items():
        scores = {data: score["giou"] for data, score in found["evaluation"].items()}
        print(f"{order}: mean IoU {scores} after {found['images']} images")


if __name__ == "__main__":
    main()
