"""What clients see while the engine is killed and stopped under load, over HTTP.

A server runs here, its engine in a process beside it; clients ask without a pause about pictures
that are all different, and know what the answer must be: of the canary engine by the pixels, of the
model by what it said before. Meanwhile the engine's process gets SIGKILL at random times, then
SIGSTOP.

    python benchmarks/engine_kills.py [--engine canary|embedded] [--spare] [--kills 100] [--stops 5]
        [--answers 10000] [--clients 8] [--seed 0] [--quick] [--json]

It goes on until there were so many answers. With ``--json`` the last line printed is one object:
``kills``, ``stops``, ``answered`` (right ones), ``wrong`` (the answer to another picture or
question, or another text), ``refused`` (503 with a code and ``Retry-After``, by code), ``lost``
(anything else), ``replays`` by outcome, and in milliseconds ``kill_seen_ms``,
``kill_to_success_ms`` (the next answer that any client gets), ``stop_seen_ms`` and
``stop_to_success_ms``: median and worst. ``--quick``: 5 kills, 1 stop, 300 answers.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import uvicorn
from canary_engine import CanaryEngine, canary_points
from PIL import Image
from provenance import provenance

import simpleseg_server
from simpleseg_polygon.prompts import instruction
from simpleseg_server.app import create_app
from simpleseg_server.config import Settings
from simpleseg_server.engines.choose import Supervision, make_engine
from simpleseg_server.supervision.process import ProcessEngine, preload
from simpleseg_server.supervision.supervisor import SupervisedEngine
from simpleseg_server.supervision.vitals import Patience

MODEL = Path(simpleseg_server.__file__).parent / "demo_model"
PICTURES = 12
"""Of the model, which is asked again about each; of the canary engine all are different."""


@dataclass
class Seen:
    """What clients and the killer have seen; ``successes`` are times of right answers."""

    answered: int = 0
    wrong: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    successes: list[float] = field(default_factory=list)


@dataclass
class Harm:
    """The times of one kind of harm, and of when the server had noticed."""

    at: list[float] = field(default_factory=list)
    seen_at: list[float] = field(default_factory=list)

    def told(self, successes: Sequence[float]) -> tuple[dict[str, float], dict[str, float]]:
        seen = [b - a for a, b in zip(self.at, self.seen_at, strict=True)]
        next_ones = [
            min(done for done in successes if done > at) - at
            for at in self.at
            if successes[-1] > at
        ]
        return _summary(seen), _summary(next_ones)


def _summary(seconds: Sequence[float]) -> dict[str, float]:
    if not seconds:
        return {}
    return {
        "median": round(statistics.median(seconds) * 1e3, 1),
        "worst": round(max(seconds) * 1e3, 1),
    }


@dataclass(frozen=True)
class Question:
    body: dict[str, Any]
    points: list[list[float]] | None

    @classmethod
    def number(cls, number: int, side: int, *, is_canary: bool) -> "Question":
        pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        prompt = f"the thing {number}"
        body = {"image": base64.b64encode(buffer.getvalue()).decode(), "prompt": prompt}
        points = canary_points(pixels, instruction("region", prompt)) if is_canary else None
        return cls(body, points)


class Clients:
    """Ask, one question after another, until there are enough answers and no harm is left."""

    def __init__(self, http: httpx2.AsyncClient, is_canary: bool) -> None:
        self.seen = Seen()
        self.is_over = False
        self._http = http
        self._is_canary = is_canary
        self._known = [Question.number(n, 128, is_canary=False) for n in range(PICTURES)]
        self._answers: dict[int, Any] = {}
        self._next = 0

    async def learn(self) -> None:
        """What the model says when nothing is wrong; the canary engine's answers are known."""
        if not self._is_canary:
            for number, question in enumerate(self._known):
                response = await self._http.post("/segment", json=question.body)
                self._answers[number] = response.json()["results"]

    async def run(self, answers: int) -> None:
        while not self.is_over or self.seen.answered < answers:
            number, self._next = self._next, self._next + 1
            await self._ask(number)

    async def _ask(self, number: int) -> None:
        known = number % PICTURES
        question = (
            Question.number(number, 24, is_canary=True) if self._is_canary else self._known[known]
        )
        try:
            response = await self._http.post("/segment", json=question.body)
        except httpx2.HTTPError as error:
            self.seen.lost[type(error).__name__] += 1
            return
        if response.status_code == 200:
            self._judge(response.json()["results"], question, known)
        elif response.status_code == 503 and "retry-after" in response.headers:
            self.seen.refused[response.json()["error"]["code"]] += 1
            await asyncio.sleep(0.05)  # a client that obeyed would leave the engine without load
        else:
            self.seen.lost[str(response.status_code)] += 1

    def _judge(self, results: Any, question: Question, known: int) -> None:
        if question.points is None:
            is_right = _are_same(results, self._answers[known])
        else:
            is_right = results[0].get("polygons") == [question.points]
        if is_right:
            self.seen.answered += 1
            self.seen.successes.append(time.perf_counter())
        else:
            self.seen.wrong += 1


def _are_same(given: list[dict[str, Any]], known: list[dict[str, Any]]) -> bool:
    """All but the last digits of scores, which the other requests of a batch have a part in."""

    def scores(results: list[dict[str, Any]]) -> list[float]:
        return [one.get("score") or 0.0 for one in results]

    def rest(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**one, "score": None} for one in results]

    return rest(given) == rest(known) and np.allclose(scores(given), scores(known), atol=1e-4)


async def harmed(
    engine: SupervisedEngine, number: signal.Signals, times: int, rng: random.Random, spare: bool
) -> Harm:
    """Send the signal at random times; the next one once there is an engine (and a spare) again."""
    harm = Harm()
    for _ in range(times):
        await _until(lambda: len(engine.engines) == 1 + spare)
        await asyncio.sleep(rng.uniform(0.1, 1.0))
        first = engine.engines[0] if engine.engines else None
        if not isinstance(first, ProcessEngine) or first.pid is None:
            continue
        os.kill(first.pid, number)
        harm.at.append(time.perf_counter())
        await _until(lambda one=first: one not in engine.engines)
        harm.seen_at.append(time.perf_counter())
    await _until(lambda: bool(engine.engines))
    return harm


async def _until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def supervised(args: argparse.Namespace) -> SupervisedEngine:
    if args.engine == "embedded":
        engine = make_engine(
            "embedded", str(MODEL), supervision=Supervision(Patience(), spare=args.spare)
        )
        assert isinstance(engine, SupervisedEngine)
        return engine
    preload("canary_engine")
    make = CanaryEngine(args.service_s)
    return SupervisedEngine(lambda _: ProcessEngine(make), spare=args.spare)


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    engine = supervised(args)
    app = create_app(Settings(playground=False), engine)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    serving = asyncio.create_task(server.serve())
    await _until(lambda: server.started and bool(engine.engines))
    port = server.servers[0].sockets[0].getsockname()[1]
    rng = random.Random(args.seed)
    limits = httpx2.Limits(max_connections=args.clients)
    url = f"http://127.0.0.1:{port}"
    async with httpx2.AsyncClient(base_url=url, timeout=300, limits=limits) as http:
        clients = Clients(http, args.engine == "canary")
        await clients.learn()
        asking = [asyncio.create_task(clients.run(args.answers)) for _ in range(args.clients)]
        kills = await harmed(engine, signal.SIGKILL, args.kills, rng, args.spare)
        stops = await harmed(engine, signal.SIGSTOP, args.stops, rng, args.spare)
        clients.is_over = True
        await asyncio.gather(*asking)
    restarts, replays = engine.restarts, dict(engine.replays)
    server.should_exit = True
    await serving
    return told(clients.seen, kills, stops) | {"restarts": restarts, "replays": replays}


def told(seen: Seen, kills: Harm, stops: Harm) -> dict[str, Any]:
    kill_seen, kill_to_success = kills.told(seen.successes)
    stop_seen, stop_to_success = stops.told(seen.successes)
    return {
        "kills": len(kills.at),
        "stops": len(stops.at),
        "answered": seen.answered,
        "wrong": seen.wrong,
        "refused": dict(seen.refused),
        "lost": dict(seen.lost),
        "kill_seen_ms": kill_seen,
        "kill_to_success_ms": kill_to_success,
        "stop_seen_ms": stop_seen,
        "stop_to_success_ms": stop_to_success,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=["canary", "embedded"], default="canary")
    parser.add_argument("--spare", action="store_true", help="a second engine that takes over")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--stops", type=int, default=5)
    parser.add_argument("--answers", type=int, default=10_000, help="at least so many")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--service-s", type=float, default=0.1, help="of the canary engine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.kills, args.stops, args.answers = 5, 1, 300
    model = "simpleseg-demo" if args.engine == "embedded" else None
    said = provenance(
        "torch", "transformers", "fastapi", "uvicorn", model=model, inputs="random pixels"
    )
    result = asyncio.run(measure(args))
    for name, value in result.items():
        print(f"{name:<20} {value}")
    if args.json:
        options = {"engine": args.engine, "spare": args.spare, "clients": args.clients}
        print(json.dumps({**said, **options, **result}))


if __name__ == "__main__":
    main()
