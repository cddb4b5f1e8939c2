"""A client in a process of its own, which imports little and shares no interpreter with a server.

As a program it reads lines of JSON: first ``{"url", "bodies"}``, then orders ``{"places",
"under_way"}``; of each it posts the bodies at those places to ``/segment``, so many at a time, and
prints ``{"seconds", "answers": [[ms, timings_ms], ...]}``.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2

T = TypeVar("T")
LONGEST_LINE = 2**24


@dataclass(frozen=True)
class Answered:
    """A request as its client saw it, and what the server said of its time."""

    ms: float
    timings_ms: dict[str, float]


class Poster:
    """That process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def post(self, places: range, under_way: int) -> tuple[float, list[Answered]]:
        """Seconds from the first request to the last answer, and the answers."""
        assert self._process.stdout is not None
        await self.say({"places": list(places), "under_way": under_way})
        told = json.loads(await self._process.stdout.readline())
        return told["seconds"], [Answered(*one) for one in told["answers"]]

    async def say(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        await self._process.stdin.drain()


@asynccontextmanager
async def poster(url: str, bodies: Sequence[str]) -> AsyncIterator[Poster]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        limit=LONGEST_LINE,
    )
    try:
        client = Poster(process)
        await client.say({"url": url, "bodies": list(bodies)})
        yield client
    finally:
        process.kill()
        await process.wait()


async def closed_loop(calls: Sequence[Awaitable[T]], under_way: int) -> list[T]:
    """The results of all calls, of which so many run at a time."""
    slots = asyncio.Semaphore(under_way)

    async def one(call: Awaitable[T]) -> T:
        async with slots:
            return await call

    return await asyncio.gather(*map(one, calls))


async def main() -> None:
    """Sleeps while it waits for an order: the connections stay open."""
    start = json.loads(sys.stdin.readline())
    async with httpx2.AsyncClient(base_url=start["url"], timeout=300) as http:

        async def post(place: int) -> tuple[float, dict[str, float]]:
            began = time.perf_counter()
            headers = {"content-type": "application/json"}
            answer = await http.post("/segment", content=start["bodies"][place], headers=headers)
            ms = (time.perf_counter() - began) * 1e3
            return ms, answer.raise_for_status().json()["timings_ms"]

        for line in sys.stdin:
            order = json.loads(line)
            began = time.perf_counter()
            answers = await closed_loop(list(map(post, order["places"])), order["under_way"])
            seconds = time.perf_counter() - began
            print(json.dumps({"seconds": seconds, "answers": answers}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
