"""Ray Serve on this machine, a load on it, and what may befall it."""

import asyncio
import base64
import io
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import psutil
import ray
from PIL import Image
from ray import serve
from sides import free_port

from simpleseg_polygon.prompts import TARGETS
from simpleseg_server.config import Settings
from simpleseg_server.engines.base import Capabilities, Engine
from simpleseg_server.engines.scripted import Reply, ScriptedEngine
from simpleseg_server.ray_serve.application import Plan, application
from simpleseg_server.ray_serve.replica import EngineFactory

APP = "simpleseg"


@contextmanager
def cluster(cpus: int = 64) -> Iterator[str]:
    """The address of a Serve that this process starts and stops. ``cpus`` are what Ray may give
    away: scripted replicas only wait."""
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        object_store_memory=2**28,
        log_to_driver=False,
    )
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def deploy(plan: Plan, make: EngineFactory) -> None:
    """Return once all replicas of the plan are there, and those of an earlier one are gone."""
    serve.run(application(plan, make), name=APP, route_prefix="/")
    wanted = {"engines": plan.min_engines, "front-ends": plan.front_ends}
    while any(replica_states(name) != {"RUNNING": count} for name, count in wanted.items()):
        time.sleep(0.05)


def replica_states(deployment: str) -> dict[str, int]:
    states = serve.status().applications[APP].deployments[deployment].replica_states
    return {str(getattr(name, "value", name)): count for name, count in states.items() if count}


def pids_of(deployment: str) -> list[int]:
    """The processes of its replicas."""
    title = f"ServeReplica:{APP}:{deployment}"
    children = psutil.Process().children(recursive=True)
    return [one.pid for one in children if title in " ".join(_command_line(one))]


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def kill_an_engine() -> int:
    """Kill one replica as the kernel would, and say which."""
    pid = min(pids_of("engines"))
    os.kill(pid, signal.SIGKILL)
    return pid


def scripted(
    service_s: float, at_once: int, tokens: int = 8, *, is_marked: bool = True
) -> EngineFactory:
    """Engines that take ``service_s`` for an answer and give ``at_once`` answers together. With
    ``is_marked`` an answer's first vertex has the process that gave it, modulo 900, in thousandths;
    no other can then go on with an answer of it."""

    def make(_: Settings) -> Engine:
        mark = os.getpid() % 900 / 1000 if is_marked else 0.5
        text = f"[[[{mark}, 0.95], [0.95, 0.95], [0.95, 0.99]]]."
        size = -(-len(text) // tokens)
        reply = Reply(text, token_length=size, delay_s=service_s / -(-len(text) // size))
        capabilities = Capabilities("scripted", "scripted", TARGETS, 4096, at_once, 64 * 64)
        return ScriptedEngine([reply], capabilities=capabilities)

    return make


def bodies(count: int, side_px: int = 32) -> list[bytes]:
    """So many requests, each with an image of its own."""
    return [_body(number, side_px) for number in range(count)]


def _body(number: int, side_px: int) -> bytes:
    colour = (number % 256, number // 256 % 256, 99)
    content = io.BytesIO()
    Image.new("RGB", (side_px, side_px), colour).save(content, "PNG")
    image = {"base64": base64.b64encode(content.getvalue()).decode()}
    return json.dumps({"image": image, "prompts": ["the dog"]}).encode()


@dataclass(frozen=True)
class Answer:
    """What came of a request: when, after how long, the status (0: none came), and the body."""

    number: int
    at: float
    seconds: float
    status: int
    body: Any


class Load:
    """While inside, ``under_way`` requests are kept under way, from a thread of its own.

    On leaving, those that have begun are waited for. No request is sent twice."""

    def __init__(self, url: str, requests: Sequence[bytes], under_way: int) -> None:
        self._url = url
        self._requests = requests
        self._under_way = under_way
        self._is_over = False
        self._next = 0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.answers: list[Answer] = []

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._thread.join()

    def wait_for(self, count: int) -> None:
        """Until so many answers have come."""
        while len(self.answers) < count:
            assert self._thread.is_alive()
            time.sleep(0.02)

    def rate(self, seconds: float) -> float:
        """Answers in a second, over the next ``seconds``."""
        began, before = time.monotonic(), len(self.answers)
        time.sleep(seconds)
        return (len(self.answers) - before) / (time.monotonic() - began)

    @property
    def statuses(self) -> Counter[int]:
        return Counter(one.status for one in self.answers)

    @property
    def lost(self) -> int:
        """Accepted requests without a good answer: a refusal for lack of room is none of them."""
        return sum(count for status, count in self.statuses.items() if status not in (200, 429))

    async def _run(self) -> None:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            await asyncio.gather(*(self._ask(session) for _ in range(self._under_way)))

    async def _ask(self, session: aiohttp.ClientSession) -> None:
        headers = {"Content-Type": "application/json"}
        while not self._is_over:
            number = self._next % len(self._requests)
            self._next += 1
            began = time.monotonic()
            try:
                url = f"{self._url}/segment"
                async with session.post(url, data=self._requests[number], headers=headers) as got:
                    status, body = got.status, await got.json(content_type=None)
            except (aiohttp.ClientError, ValueError) as error:
                status, body = 0, repr(error)
            now = time.monotonic()
            self.answers.append(Answer(number, now, now - began, status, body))
