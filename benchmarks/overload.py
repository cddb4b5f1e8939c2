"""What a server does when more is asked of it than it can do.

    python benchmarks/overload.py [--seconds 30] [--rounds 3] [--slots 1] [--queue 4] [--json]

The engine sleeps 20 ms for each request, so that capacity is slots / 20 ms and not a matter of CPU.
Each round measures capacity C with a closed loop, then offers 0.8, 2 and 10 times C in an open loop
of Poisson arrivals, with images of a few bytes. Server and generator have a core of their own.

With ``--json`` the last line printed is one object: ``rounds``, with the figures of every load, and
of all rounds ``goodput_2x`` and ``goodput_10x`` (good answers per second over C), ``p99_ratio`` (of
those accepted at 10 C over those at 0.8 C) and ``rejection_p99_ms`` (before a byte of the body was
sent), each as median and worst, ``lost`` (no complete answer, or an error that is no coded 503),
and ``probe_ms``, /readyz on the listener for operations during all of it.
"""

import argparse
import asyncio
import base64
import gc
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2
from overload_load import Question, closed_loop, figures, open_loop, percentile
from overload_server import Server, cores, serving
from PIL import Image
from provenance import provenance

LOADS = (0.8, 2.0, 10.0)
PROBE_EVERY_S = 0.1


def question(prompt: str = "x", key: str | None = None) -> Question:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, "PNG")
    image = base64.b64encode(buffer.getvalue()).decode()
    return Question.of({"image": image, "prompt": prompt}, key)


async def probing(server: Server, seen: list[float]) -> None:
    """Milliseconds of each probe; one that says anything but ready fails."""
    url = f"http://127.0.0.1:{server.ops_port}/readyz"
    async with httpx2.AsyncClient() as client:
        while True:
            began = time.perf_counter()
            (await client.get(url)).raise_for_status()
            seen.append((time.perf_counter() - began) * 1e3)
            await asyncio.sleep(PROBE_EVERY_S)


async def one_round(server: Server, seconds: float, users: int, seed: int) -> dict[str, Any]:
    asked, probes = question(), list[float]()
    probe = asyncio.create_task(probing(server, probes))
    found = figures(await closed_loop(server.port, users, seconds, asked), seconds)
    capacity = found["good_per_s"]
    loads = {}
    for times in LOADS:
        shots = await open_loop(server.port, times * capacity, seconds, asked, seed)
        loads[f"{times:g}"] = figures(shots, seconds)
    probe.cancel()
    return {
        "capacity_per_s": capacity,
        "loads": loads,
        "probe_ms": {"p50": percentile(probes, 0.5), "p99": percentile(probes, 0.99)},
    }


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    goodput = {
        times: [one["loads"][times]["good_per_s"] / one["capacity_per_s"] for one in rounds]
        for times in ("2", "10")
    }
    p99 = [{k: v["accepted_ms"]["p99"] for k, v in one["loads"].items()} for one in rounds]
    rejection = [one["loads"]["10"]["refused_ms"]["p99"] for one in rounds]
    return {
        "goodput_2x": _of(goodput["2"], min),
        "goodput_10x": _of(goodput["10"], min),
        "p99_ratio": _of([one["10"] / one["0.8"] for one in p99], max),
        "rejection_p99_ms": _of(rejection, max),
        "probe_p99_ms": _of([one["probe_ms"]["p99"] for one in rounds], max),
        "lost": sum(load["lost"] for one in rounds for load in one["loads"].values()),
    }


def _of(values: list[float], worst: Any) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "worst": round(worst(values), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description="A server under more load than it can carry.")
    parser.add_argument("--seconds", type=float, default=30, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slots", type=int, default=1, help="prompts at a time")
    parser.add_argument("--queue", type=int, default=4, help="requests that may wait")
    parser.add_argument("--quick", action="store_true", help="one round of 5 s for each load")
    parser.add_argument("--json", action="store_true", help="print one JSON object, last")
    options = parser.parse_args()
    seconds, count = (5, 1) if options.quick else (options.seconds, options.rounds)
    about = f"32 x 32 PNG, engine of 20 ms, {options.slots} slots, {options.queue} may wait"
    result = provenance("uvicorn", "httptools", "fastapi", model=None, inputs=about)
    os.sched_setaffinity(0, cores()[1])
    gc.freeze()  # collecting what imports made would stop the generator for 80 ms
    rounds = []
    for number in range(count):
        with (
            tempfile.TemporaryDirectory() as folder,
            serving(
                Path(folder) / "log",
                max_running_prompts=options.slots,
                max_queued_requests=options.queue,
            ) as server,
        ):
            users = options.slots + options.queue
            rounds.append(asyncio.run(one_round(server, seconds, users, number)))
        if not options.json:
            print(json.dumps(rounds[-1], indent=1))
    result |= {"seconds": seconds, **summary(rounds), "rounds": rounds}
    print(json.dumps(result) if options.json else json.dumps(summary(rounds), indent=1))


if __name__ == "__main__":
    main()
