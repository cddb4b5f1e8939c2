"""What clients that are slow, or leave, cost the others.

    python benchmarks/slow_clients.py [--clients 1000] [--seconds 20] [--rounds 3] [--json]

A third of the slow clients send a head, a third a body, one byte a second; the others say nothing.
Whoever is closed comes again. Beside them requests are offered at half of the capacity, and before
them too, for comparison. Before that, clients ask for what never ends and leave, while one request
waits for the only slot: from their leaving to its answer is what freeing the slot takes, with the
request's own time.

With ``--json`` the last line printed is one object: ``rounds``; ``p99_ratio``, of the others beside
the slow ones over alone, as median and worst; ``refused``, how many of the others beside them;
``lost``; ``evicted``, how many slow ones were closed; and ``freed_ms``, p50 and p99 of 50.
"""

import argparse
import asyncio
import gc
import json
import os
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from overload import question
from overload_load import Shot, figures, open_loop, percentile, shoot
from overload_server import ENDLESS, SERVICE_S, Server, cores, serving
from provenance import provenance

LEAVERS = 50
BEGIN_S = 5.0
"""Slow clients begin one after another, as they do: this long after they began, they are closed."""
_HEAD = b"POST /segment HTTP/1.1\r\nHost: bench\r\n"
STARTS = (b"", _HEAD, _HEAD + b"Content-Type: application/json\r\nContent-Length: 9000\r\n\r\n")


async def slow_client(port: int, begins_s: float, kind: int, evictions: list[float]) -> None:
    await asyncio.sleep(begins_s)
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(STARTS[kind])
                closed = asyncio.create_task(reader.read())
                while not closed.done():
                    await asyncio.wait({closed}, timeout=1)
                    if kind:
                        writer.write(b"x")
                with suppress(OSError):
                    closed.result()
                evictions.append(time.perf_counter())
            finally:
                closed.cancel()
                writer.close()
        await asyncio.sleep(0.1)


async def one_round(server: Server, clients: int, seconds: float, seed: int) -> dict[str, Any]:
    rate, asked = 0.5 / SERVICE_S, question()
    alone = figures(await open_loop(server.port, rate, seconds, asked, seed), seconds)
    evictions: list[float] = []
    slow = [
        asyncio.create_task(
            slow_client(server.port, BEGIN_S * number / clients, number % 3, evictions)
        )
        for number in range(clients)
    ]
    await asyncio.sleep(BEGIN_S + 1)
    beside = figures(await open_loop(server.port, rate, seconds, asked, seed), seconds)
    for client in slow:
        client.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    return {"alone": alone, "beside": beside, "evicted": len(evictions)}


async def freed_ms(server: Server) -> list[float]:
    endless, found = question(ENDLESS), []
    for _ in range(LEAVERS):
        leaver = asyncio.create_task(shoot(server.port, endless, time.perf_counter()))
        waiter = await one_that_waits(server)
        began = time.perf_counter()
        leaver.cancel()
        assert (await waiter).is_good
        found.append((time.perf_counter() - began) * 1e3)
    return found


async def one_that_waits(server: Server) -> "asyncio.Task[Shot]":
    """A request that waits for the slot; one that had it first is answered, and another tried."""
    while True:
        await asyncio.sleep(0.1)
        waiter = asyncio.create_task(shoot(server.port, question(), time.perf_counter()))
        while not waiter.done():
            await asyncio.sleep(0.02)
            if await asyncio.to_thread(server.gauge, "simpleseg_queue_depth") == 1:
                return waiter


def main() -> None:
    parser = argparse.ArgumentParser(description="What slow clients cost the others.")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="60 clients, one round of 4 s")
    parser.add_argument("--json", action="store_true", help="print one JSON object, last")
    options = parser.parse_args()
    clients, seconds, count = options.clients, options.seconds, options.rounds
    if options.quick:
        clients, seconds, count = 60, 4, 1
    about = f"{clients} slow clients; 32 x 32 PNG, engine of 20 ms, 1 slot, 8 may wait"
    result: dict[str, Any] = provenance("uvicorn", "httptools", model=None, inputs=about)
    os.sched_setaffinity(0, cores()[1])
    gc.freeze()  # collecting what imports made would stop the generator for 80 ms
    settings = {"max_running_prompts": 1, "max_queued_requests": 8}
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder) / "log", **settings) as server,
    ):
        freed = asyncio.run(freed_ms(server))
        rounds = [asyncio.run(one_round(server, clients, seconds, n)) for n in range(count)]
    p99 = [
        one["beside"]["accepted_ms"]["p99"] / one["alone"]["accepted_ms"]["p99"] for one in rounds
    ]
    result |= {
        "p99_ratio": {"median": round(statistics.median(p99), 3), "worst": round(max(p99), 3)},
        "refused": sum(one["beside"]["outcomes"].get("503", 0) for one in rounds),
        "lost": sum(one[kind]["lost"] for one in rounds for kind in ("alone", "beside")),
        "evicted": sum(one["evicted"] for one in rounds),
        "freed_ms": {"p50": percentile(freed, 0.5), "p99": percentile(freed, 0.99)},
        "rounds": rounds,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
