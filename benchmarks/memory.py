"""Memory of the server without a model over thousands of mixed requests: does it stay flat?

    python benchmarks/memory.py [--quick] [--json] [--requests N]

The server runs in a process of its own with an engine whose answers are written down, so that what
is measured is everything but the engine. The mix: images of four formats and many sizes, sent,
kept and deleted; all tasks; every ``return``; several prompts, samples and second looks; batches;
streams heard to the end and left early; chats, plain and streamed; refused requests of many kinds;
engines that fail. ``--requests`` are counted after a warm-up of the same mix.

With ``--json`` the last line printed is one object: ``growth_mib`` is how much the largest resident
set rose after the warm-up, ``rss_mib`` the resident set along the way, and ``statuses`` what the
requests got. ``growth_mib`` is better lower.
"""

import argparse
import asyncio
import base64
import io
import json
import logging
import multiprocessing
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import httpx2
import numpy as np
import uvicorn
from PIL import Image
from provenance import provenance
from sides import free_port

from simpleseg.schema import Output
from simpleseg_server.app import create_app
from simpleseg_server.config import Settings
from simpleseg_server.engines.base import GenerationRequest
from simpleseg_server.engines.scripted import Reply, ScriptedEngine
from simpleseg_server.serving import bind

REQUESTS, QUICK_REQUESTS = 10_000, 300
WARM_UP_SHARE = 0.2
SAMPLES = 20
UNDER_WAY = 8
KEPT_BYTES = 8 * 2**20
SPAWN = multiprocessing.get_context("spawn")

PART = "[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9], [0.3, 0.95]]"
TEXTS = {
    "region": [f"[{PART}].", f"[{PART}, [[0.6, 0.6], [0.9, 0.6], [0.9, 0.9]]].", "[]", "well"],
    "box": ["[[0.1, 0.1, 0.5, 0.5]].", "[].", "[[0.1, 0.1"],
    "point": ["[[0.25, 0.75]].", "[].", "?"],
    "text": ["a thing", ""],
}
SIDES_PX = ((2000, 1500), (1024, 768), (640, 480), (320, 240), (128, 96), (64, 64))
"""The first comes once, the next twice: decoding of many pixels takes most of the time, and shows
nothing that that of few does not."""


@dataclass(frozen=True)
class Sent:
    """One request. ``leaves``: the client hangs up after the first bytes of the answer."""

    path: str
    body: bytes
    leaves: bool = False


def reply(request: GenerationRequest) -> Reply:
    """An answer that the prompt picks, so that it is the same every time."""
    number = sum(request.instruction.encode())
    texts = TEXTS[request.target]
    if number % 41 == 0:
        return Reply("[[", fault="error", fault_after=number % 3)
    if number % 43 == 0:
        return Reply("[[", fault="busy")
    return Reply(texts[number % len(texts)], token_length=1 + number % 4)


class ForgetfulEngine(ScriptedEngine):
    """Keeps no record of what it was asked, which would hold every image."""

    async def generate(self, request: GenerationRequest) -> Any:
        async for delta in super().generate(request):
            yield delta
        self.requests.clear()
        self.cancelled.clear()


def serve(port: int) -> None:
    settings = Settings(max_kept_image_bytes=KEPT_BYTES)
    logging.disable(logging.CRITICAL)  # scripted faults are told with their tracebacks
    app = create_app(settings, ForgetfulEngine(reply))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    asyncio.run(server.serve([bind("127.0.0.1", port, "port")]))


class Mix:
    """Requests without end, the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._images = list(_images(seed))
        self._kept: list[str] = []

    def keep(self, image_id: str) -> None:
        self._kept = [*self._kept[-31:], image_id]

    def next(self) -> Sent:
        kinds = [self._segment, self._stream, self._batch, self._chat, self._upload, self._wrong]
        return self._random.choices(kinds, weights=[8, 3, 1, 2, 1, 2])[0]()

    def _image(self) -> dict[str, str]:
        if self._kept and self._random.random() < 0.2:
            return {"id": self._random.choice(self._kept)}
        return {"base64": self._random.choice(self._images)}

    def _question(self) -> dict[str, Any]:
        rng = self._random
        task = rng.choice(["region", "region", "box", "point", "text"])
        prompts = [f"the thing {rng.randrange(10**6)}" for _ in range(rng.choice([1, 1, 2, 4]))]
        asked: dict[str, Any] = {"image": self._image(), "prompts": prompts, "task": task}
        if task == "region":
            names = rng.sample(get_args(Output), rng.randint(1, 4))
            asked |= {"return": names, "samples": rng.choice([1, 1, 1, 3])}
            asked |= {"refine": rng.random() < 0.1, "simplify": rng.choice([0.0, 0.0, 0.01])}
        return asked

    def _segment(self) -> Sent:
        return _sent("/segment", self._question())

    def _stream(self) -> Sent:
        asked = self._question() | {"stream": True}
        return _sent("/segment", asked, leaves=self._random.random() < 0.3)

    def _batch(self) -> Sent:
        return _sent("/v1/segment/batch", {"requests": [self._question() for _ in range(3)]})

    def _chat(self) -> Sent:
        rng = self._random
        url = f"data:image/png;base64,{rng.choice(self._images)}"
        text = f"Output the polygon coordinates of thing {rng.randrange(10**6)} in the image."
        image = {"type": "image_url", "image_url": {"url": url}}
        message = {"role": "user", "content": [image, {"type": "text", "text": text}]}
        streams = rng.random() < 0.5
        asked = {"model": "scripted", "messages": [message], "stream": streams}
        return _sent("/v1/chat/completions", asked, leaves=streams and rng.random() < 0.3)

    def _upload(self) -> Sent:
        return _sent("/v1/images", {"image": {"base64": self._random.choice(self._images)}})

    def _wrong(self) -> Sent:
        """One of many kinds of refused request, each with something of its own in it."""
        number = self._random.randrange(10**9)
        whole = self._random.choice(self._images)
        bodies: list[dict[str, Any]] = [
            {"image": {"base64": whole}, "prompts": ["x"], f"field{number}": 1},
            {"image": {"base64": whole[: len(whole) // 8 * 4]}, "prompts": ["x"]},
            {"image": {"base64": f"!{number}"}, "prompts": ["x"]},
            {"image": {"id": f"img_{number}"}, "prompts": ["x"]},
            {"image": {"url": f"http://example.com/{number}"}, "prompts": ["x"]},
            {"image": {"base64": whole}, "prompts": [f"{number}" * 4000]},
            {"image": {"base64": whole}, "prompts": ["x"], "model": f"model{number}"},
        ]
        if self._random.random() < 0.2:
            return Sent(f"/segment/{number}", b"{")
        return _sent("/segment", self._random.choice(bodies))


def _sent(path: str, asked: dict[str, Any], leaves: bool = False) -> Sent:
    return Sent(path, json.dumps(asked).encode(), leaves)


def _images(seed: int) -> Iterator[str]:
    """Files of four formats, base64; noise in a corner keeps each from being another's copy."""
    rng = np.random.default_rng(seed)
    for often, (width, height) in enumerate(SIDES_PX, 1):
        for kind in ("JPEG", "PNG", "WEBP", "GIF") * often:
            pixels = np.full((height, width, 3), rng.integers(0, 255, 3), np.uint8)
            pixels[:32, :32] = rng.integers(0, 255, (32, 32, 3))
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, kind)
            yield base64.b64encode(buffer.getvalue()).decode()


async def send(http: httpx2.AsyncClient, mix: Mix, sent: Sent) -> str:
    """What became of a request: its status, or that its client left."""
    headers = {"content-type": "application/json"}
    async with http.stream("POST", sent.path, content=sent.body, headers=headers) as answer:
        if sent.leaves:
            async for _ in answer.aiter_raw():
                return "left"
        await answer.aread()
    if sent.path == "/v1/images" and answer.status_code < 300:
        mix.keep(answer.json()["id"])
    return str(answer.status_code)


async def drive(url: str, pid: int, count: int, mix: Mix) -> tuple[Counter[str], list[float]]:
    """Statuses of ``count`` requests, 8 under way, and the resident set every so many, in MiB."""
    statuses: Counter[str] = Counter()
    resident: list[float] = []
    async with httpx2.AsyncClient(base_url=url, timeout=120) as http:

        async def work() -> None:
            while sum(statuses.values()) < count:
                statuses[await send(http, mix, mix.next())] += 1
                if sum(statuses.values()) % max(1, count // SAMPLES) == 0:
                    resident.append(memory_mib(pid, "VmRSS"))

        await asyncio.gather(*(work() for _ in range(UNDER_WAY)))
    return statuses, resident


def memory_mib(pid: int, name: str) -> float:
    """A line of the process's status: ``VmRSS`` is its resident set, ``VmHWM`` the largest yet."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(name)]
    return round(int(line.split()[1]) / 1024, 1)


@contextmanager
def served(serve: Callable[..., None], *options: Any) -> Iterator[tuple[str, int]]:
    """The URL and process id of a server that ``serve(port, *options)`` runs, once it is ready."""
    port = free_port()
    process = SPAWN.Process(target=serve, args=(port, *options), daemon=True)
    process.start()
    url = f"http://127.0.0.1:{port}"
    try:
        while not is_ready(url):
            process.join(0.1)
            if not process.is_alive():
                raise SystemExit("the server did not start")
        assert process.pid is not None
        yield url, process.pid
    finally:
        process.kill()
        process.join(20)


def is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz").status_code == 200
    except httpx2.TransportError:
        return False


async def measure(count: int, url: str, pid: int) -> dict[str, Any]:
    mix = Mix(seed=0)
    await drive(url, pid, max(50, int(count * WARM_UP_SHARE)), mix)
    began, largest = memory_mib(pid, "VmRSS"), memory_mib(pid, "VmHWM")
    statuses, resident = await drive(url, pid, count, mix)
    return {
        "growth_mib": round(memory_mib(pid, "VmHWM") - largest, 1),
        "rss_growth_mib": round(memory_mib(pid, "VmRSS") - began, 1),
        "requests": sum(statuses.values()),
        "after_warm_up_mib": {"rss": began, "largest": largest},
        "rss_mib": resident,
        "statuses": dict(sorted(statuses.items())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one object on the last line")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_REQUESTS} requests")
    parser.add_argument("--requests", type=int)
    options = parser.parse_args()
    count = options.requests or (QUICK_REQUESTS if options.quick else REQUESTS)
    figures = provenance("fastapi", "uvicorn", "pillow", model=None, inputs="a seeded mix, seed 0")
    with served(serve) as (url, pid):
        figures |= asyncio.run(measure(count, url, pid))
    if options.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name}: {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
