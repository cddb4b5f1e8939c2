"""What is lost when a server is told to stop while twice as much is asked of it as it can do.

    python benchmarks/drain.py [--runs 100] [--quick] [--json]

Each run starts a server, offers 2 C in an open loop of Poisson arrivals, each request on a
connection of its own, sends SIGTERM at a random moment, and goes on asking until nobody listens.

With ``--json`` the last line printed is one object: ``lost`` (connections that were made and got
no complete answer, or an error that is no coded 503), ``outcomes`` of all requests,
``exit_codes``, and ``exit_s``, from the signal to the end of the process.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from overload import question
from overload_load import Shot, open_loop, percentile
from overload_server import SERVICE_S, Server, cores, serving
from provenance import provenance

LOAD, BEFORE_S, AFTER_S = 2.0, (0.3, 1.0), 1.5


async def one_run(server: Server, seed: int) -> tuple[list[Shot], float]:
    """What became of the requests, and how long the server took to end."""
    before_s = random.Random(seed).uniform(*BEFORE_S)
    asked = asyncio.create_task(
        open_loop(server.port, LOAD / SERVICE_S, before_s + AFTER_S, question(), seed)
    )
    await asyncio.sleep(before_s)
    assert server.process.pid is not None
    os.kill(server.process.pid, signal.SIGTERM)
    began = time.perf_counter()
    await asyncio.to_thread(server.process.join, 60)
    return await asked, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description="What SIGTERM costs under load.")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="3 runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object, last")
    options = parser.parse_args()
    runs = 3 if options.quick else options.runs
    about = f"32 x 32 PNG, engine of 20 ms, 1 slot, 4 may wait, {runs} runs"
    result: dict[str, Any] = provenance("uvicorn", "httptools", model=None, inputs=about)
    os.sched_setaffinity(0, cores()[1])
    shots, took, codes = list[Shot](), list[float](), Counter[str]()
    for number in range(runs):
        settings = {"max_running_prompts": 1, "max_queued_requests": 4}
        with (
            tempfile.TemporaryDirectory() as folder,
            serving(Path(folder) / "log", **settings) as server,
        ):
            found, seconds = asyncio.run(one_run(server, number))
            codes[str(server.process.exitcode)] += 1
        shots += found
        took.append(round(seconds, 3))
    result |= {
        "runs": runs,
        "lost": sum(shot.is_lost for shot in shots),
        "outcomes": dict(Counter(str(shot.code or shot.status or shot.fate) for shot in shots)),
        "exit_codes": dict(codes),
        "exit_s": {"p50": percentile(took, 0.5), "max": max(took)},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
