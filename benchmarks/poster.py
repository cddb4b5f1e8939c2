"""A client in a process of its own, which shares no interpreter with a server and costs little: of
threads and the standard library's HTTP, since what a client takes is no part of a server's time.

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
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection
from queue import LifoQueue
from typing import Any, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")
LONGEST_LINE = 2**24
MOST_UNDER_WAY = 64


@dataclass(frozen=True)
class Answered:
    """A request as its client saw it, and what the server said of its time."""

    ms: float
    timings_ms: dict[str, float]


class Poster:
    """That process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

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


def main() -> None:
    """Sleeps while it waits for an order: the connections stay open."""
    start = json.loads(sys.stdin.readline())
    bodies = [body.encode() for body in start["bodies"]]
    idle: LifoQueue[HTTPConnection] = LifoQueue()
    for _ in range(MOST_UNDER_WAY):
        idle.put(HTTPConnection(urlsplit(start["url"]).netloc, timeout=300))

    def post(place: int) -> tuple[float, dict[str, float]]:
        connection = idle.get()
        began = time.perf_counter()
        headers = {"content-type": "application/json"}
        connection.request("POST", "/segment", bodies[place], headers)
        answer = connection.getresponse()
        told = answer.read()
        ms = (time.perf_counter() - began) * 1e3
        idle.put(connection)
        if answer.status != HTTPStatus.OK:
            raise SystemExit(told.decode())
        return ms, json.loads(told)["timings_ms"]

    for line in sys.stdin:
        order = json.loads(line)
        with ThreadPoolExecutor(order["under_way"]) as threads:
            began = time.perf_counter()
            answers = list(threads.map(post, order["places"]))
            seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "answers": answers}), flush=True)


if __name__ == "__main__":
    main()
