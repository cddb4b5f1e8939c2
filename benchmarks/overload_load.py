"""An open loop: requests begin when their time has come, whatever became of those before.

Each has a connection of its own and sends its head alone, with ``Expect: 100-continue``; a server
that refuses it has not seen its body. Times count from when a request was due, so that a generator
or a server that falls behind hides nothing.
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Fate = Literal["answered", "not_accepted", "lost"]
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Shot:
    """One request: when it was due, on the clock of ``time.perf_counter``, how long its answer
    took, and what became of it. ``not_accepted``: there was no connection."""

    due: float
    seconds: float
    fate: Fate
    status: int | None = None
    code: str | None = None

    @property
    def is_good(self) -> bool:
        return self.status == 200

    @property
    def is_lost(self) -> bool:
        """Whether it broke the promise: an answer, and of errors of the server a coded 503 only."""
        is_wrong = self.status is not None and self.status >= 500
        return self.fate == "lost" or (is_wrong and not (self.status == 503 and self.code))


@dataclass(frozen=True)
class Question:
    """A request as bytes: its head, which expects a 100, and its body."""

    head: bytes
    body: bytes

    @classmethod
    def of(cls, fields: dict[str, Any], key: str | None = None) -> "Question":
        body = json.dumps(fields).encode()
        lines = ["POST /segment HTTP/1.1", "Host: bench", "Content-Type: application/json"]
        lines += [f"Content-Length: {len(body)}", "Expect: 100-continue"]
        lines += [] if key is None else [f"Authorization: Bearer {key}"]
        return cls("\r\n".join([*lines, "", ""]).encode(), body)


async def shoot(port: int, question: Question, due: float) -> Shot:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return Shot(due, time.perf_counter() - due, "not_accepted")
    try:
        async with asyncio.timeout(PATIENCE_S):
            writer.write(question.head)
            status, length = await _head(reader)
            if status == 100:
                writer.write(question.body)
                while status == 100:
                    status, length = await _head(reader)
            body = await reader.readexactly(length)
        seconds = time.perf_counter() - due
        code = None if status == 200 else json.loads(body)["error"]["code"]
        return Shot(due, seconds, "answered", status, code)
    except (OSError, EOFError, TimeoutError, ValueError):
        return Shot(due, time.perf_counter() - due, "lost")
    finally:
        writer.close()


async def _head(reader: asyncio.StreamReader) -> tuple[int, int]:
    """Status and length of the body."""
    text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    _, _, after = text.partition("content-length: ")
    return int(text.split(" ", 2)[1]), int(after.split("\r\n", 1)[0] or 0) if after else 0


def arrivals(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Seconds from the beginning on, of a Poisson process."""
    draw, at = random.Random(seed), 0.0
    while (at := at + draw.expovariate(rate)) < seconds:
        yield at


async def open_loop(
    port: int, rate: float, seconds: float, question: Question, seed: int = 0
) -> list[Shot]:
    """Requests at a rate per second, and what became of every one."""
    began = time.perf_counter()
    shots = []
    for at in arrivals(rate, seconds, seed):
        if (wait := began + at - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        shots.append(asyncio.create_task(shoot(port, question, began + at)))
    return list(await asyncio.gather(*shots))


async def closed_loop(port: int, users: int, seconds: float, question: Question) -> list[Shot]:
    """Each user asks again as soon as there is an answer; one who is refused waits a little."""
    end = time.perf_counter() + seconds

    async def use() -> list[Shot]:
        shots = []
        while (now := time.perf_counter()) < end:
            shots.append(await shoot(port, question, now))
            if not shots[-1].is_good:
                await asyncio.sleep(0.01)
        return shots

    return [shot for user in await asyncio.gather(*(use() for _ in range(users))) for shot in user]


def percentile(values: Sequence[float], share: float) -> float | None:
    """
    >>> percentile([3, 1, 2], 0.5), percentile([], 0.5)
    (2, None)
    """
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def figures(shots: Sequence[Shot], seconds: float) -> dict[str, Any]:
    """What became of a load that lasted some seconds."""
    good = [shot.seconds * 1e3 for shot in shots if shot.is_good]
    refused = [shot.seconds * 1e3 for shot in shots if shot.status == 503]
    return {
        "offered_per_s": round(len(shots) / seconds, 1),
        "good_per_s": round(len(good) / seconds, 2),
        "accepted_ms": _spread(good),
        "refused_ms": _spread(refused),
        "outcomes": dict(Counter(str(shot.status or shot.fate) for shot in shots)),
        "codes": dict(Counter(shot.code for shot in shots if shot.code)),
        "lost": sum(shot.is_lost for shot in shots),
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    found = {"p50": percentile(values, 0.5), "p99": percentile(values, 0.99), "max": max(values)}
    return {name: round(value, 2) for name, value in found.items() if value is not None}
