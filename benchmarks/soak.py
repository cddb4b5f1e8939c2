"""A long run of good and bad requests over real sockets: does anything pile up?

    python benchmarks/soak.py [--quick] [--json] [--requests N] [--leak]

The requests are those of ``memory.py``, with an engine whose answers are written down. Compared are
the memory, descriptors, threads and tasks of the server and the series of its metrics, after a
warm-up and at the end, each time once all connections are gone. With ``--leak`` the server keeps
something of every request on purpose: each of the figures must then show it, or it shows nothing.

With ``--json`` the last line printed is one object: ``rss_growth_mib``, ``descriptors``,
``threads``, ``tasks`` and ``series`` are how much more there is at the end, better 0.
"""

import argparse
import asyncio
import json
import logging
import os
import random
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from memory import (
    KEPT_BYTES,
    UNDER_WAY,
    ForgetfulEngine,
    Mix,
    memory_mib,
    reply,
    send,
    served,
)
from provenance import provenance

from simpleseg_server.app import create_app
from simpleseg_server.config import Settings
from simpleseg_server.serving import bind
from simpleseg_server.telemetry import Metrics

REQUESTS, QUICK_REQUESTS = 100_000, 300
WARM_UP_SHARE, WARM_UP_LEAST = 0.1, 5_000
"""The same requests as begin afterwards: by the end of so many nearly all kinds have come."""
SETTLING_S = 30.0
POOLS = ("simpleseg-worker", "asyncio_", "AnyIO")


class LeakyEngine(ForgetfulEngine):
    """Keeps memory, a descriptor, a thread, a task and a series of every so many requests."""

    def __init__(self, metrics: list[Metrics], every: int) -> None:
        super().__init__(reply)
        self._metrics, self._every, self._count = metrics, every, 0
        self._kept: list[Any] = []

    async def generate(self, request: Any) -> Any:
        self._count += 1
        if self._count % self._every == 0:
            self._leak()
        async for delta in super().generate(request):
            yield delta

    def _leak(self) -> None:
        thread = threading.Thread(target=threading.Event().wait, daemon=True)
        thread.start()
        task = asyncio.create_task(asyncio.sleep(10**6))
        self._kept += [random.randbytes(2**20), os.dup(0), thread, task]
        self._metrics[0].rejections.labels(str(self._count)).inc()


async def held() -> dict[str, int]:
    """Threads, without those of pools, and tasks of the server."""
    names = [thread.name for thread in threading.enumerate()]
    threads = sum(not name.startswith(POOLS) for name in names)
    return {"threads": threads, "tasks": len(asyncio.all_tasks())}


def serve(port: int, leak_every: int) -> None:
    logging.disable(logging.CRITICAL)  # scripted faults are told with their tracebacks
    found: list[Metrics] = []
    engine = LeakyEngine(found, leak_every) if leak_every else ForgetfulEngine(reply)
    app = create_app(Settings(max_kept_image_bytes=KEPT_BYTES), engine)
    found.append(app.state.services.metrics)
    app.add_api_route("/-/held", held)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    asyncio.run(server.serve([bind("127.0.0.1", port, "port")]))


async def drive(url: str, count: int, mix: Mix) -> Counter[str]:
    statuses: Counter[str] = Counter()
    async with httpx2.AsyncClient(base_url=url, timeout=120) as http:

        async def work() -> None:
            while sum(statuses.values()) < count:
                statuses[await send(http, mix, mix.next())] += 1

        await asyncio.gather(*(work() for _ in range(UNDER_WAY)))
    return statuses


async def settled(url: str, pid: int) -> dict[str, float]:
    """What the server holds, once that no longer falls."""
    _holding(url, pid)  # asking has series of its own
    best: dict[str, float] = {}
    for _ in range(int(SETTLING_S)):
        found = _holding(url, pid)
        if best and all(found[name] >= value for name, value in best.items()):
            return best
        best = found
        await asyncio.sleep(1)
    return best


def _holding(url: str, pid: int) -> dict[str, float]:
    metrics = httpx2.get(f"{url}/metrics").text.splitlines()
    counts = httpx2.get(f"{url}/-/held").json()
    return {
        "rss_growth_mib": memory_mib(pid, "VmRSS"),
        "descriptors": len(os.listdir(Path(f"/proc/{pid}/fd"))),
        "series": sum(not line.startswith("#") for line in metrics),
        **counts,
    }


async def measure(count: int, url: str, pid: int) -> dict[str, Any]:
    warm_up = max(min(count, WARM_UP_LEAST), int(count * WARM_UP_SHARE))
    await drive(url, warm_up, Mix(seed=0))
    before = await settled(url, pid)
    statuses = await drive(url, count, Mix(seed=0))
    after = await settled(url, pid)
    growth = {name: round(after[name] - before[name], 1) for name in before}
    return growth | {
        "requests": sum(statuses.values()),
        "after_warm_up": before,
        "statuses": dict(sorted(statuses.items())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one object on the last line")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_REQUESTS} requests")
    parser.add_argument("--requests", type=int)
    parser.add_argument("--leak", action="store_true", help="leak on purpose")
    options = parser.parse_args()
    count = options.requests or (QUICK_REQUESTS if options.quick else REQUESTS)
    figures = provenance("fastapi", "uvicorn", "pillow", model=None, inputs="a seeded mix, seed 0")
    with served(serve, max(5, count // 100) if options.leak else 0) as (url, pid):
        figures |= {"leak": options.leak} | asyncio.run(measure(count, url, pid))
    if options.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name}: {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
