"""What ``POST /segment`` adds to its engine: milliseconds alone, throughput when it is full.

    python benchmarks/front_end.py [--engine vllm|embedded] [--quick] [--json] [--scenes N]

The engine and the server around it run in this process, the client in another, over a socket. Each
held-out scene, a JPEG of 640x480, is put to the engine itself, decoded before, and to the server,
by turns the one first; under the engine's own name for the image, so that neither finds anything
of the other's in a cache. ``front_end_ms`` is the median over the scenes of what a request takes
longer, as the client sees it, than the engine on the same scene: answers differ in length by much
more. Then 16 requests are kept under way, in rounds by turns: ``cost_at_saturation`` is the
engine's rate by the server's.

With ``--json`` the last line printed is one object; both are better lower. ``stages_ms`` are
medians of what the server says of its time; ``outside_ms`` is the rest of what the client sees, and
``beside_generate_ms`` all of that but the stage that waits for the engine.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, get_args

import httpx2
import numpy as np
import uvicorn
from drafting_engines import DATA, DEMO_MODEL, PACKAGES, SPLIT, EngineName
from numpy.typing import NDArray
from PIL import Image
from poster import Answered, Poster, closed_loop, poster
from provenance import provenance
from sides import UNDER_WAY, free_port, tree_seconds

from simpleseg_polygon.prompts import instruction
from simpleseg_server.app import create_app
from simpleseg_server.config import Settings
from simpleseg_server.engines.base import Engine, GenerationRequest
from simpleseg_server.engines.transformers import TransformersEngine
from simpleseg_server.engines.vllm import VllmEngine
from simpleseg_server.engines.vllm_backend import VllmOptions
from simpleseg_server.images import decode, judged
from simpleseg_server.pixels import EngineSize
from simpleseg_server.serving import bind
from simpleseg_training.cases import load_cases

SCENE_PX, SIZE = 480, (640, 480)
SCENES, QUICK_SCENES, WARM_UP = 120, 8, 6
ROUNDS, QUICK_ROUNDS = 6, 2
MAX_TOKENS = 1024


@dataclass(frozen=True)
class Scene:
    """One question: the body that a client posts, and what the server makes of it."""

    body: str
    request: GenerationRequest
    decode_ms: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--engine", choices=get_args(EngineName), default="vllm")
    parser.add_argument("--json", action="store_true", help="print one object on the last line")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SCENES} scenes")
    parser.add_argument("--scenes", type=int, help="asked one at a time")
    options = parser.parse_args()
    count = options.scenes or (QUICK_SCENES if options.quick else SCENES)
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    inputs = f"{DATA} {SPLIT}, JPEG of {SIZE[0]}x{SIZE[1]} px"
    figures = provenance(*PACKAGES, model="simpleseg-demo, float32", inputs=inputs)
    figures |= asyncio.run(measure(options.engine, count, rounds))
    if options.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name}: {value}" for name, value in figures.items()))


async def measure(name: EngineName, count: int, rounds: int) -> dict[str, Any]:
    """Everything the benchmark reports of one engine."""
    engine = make_engine(name)
    async with serving(engine) as url:
        share = max(UNDER_WAY, count // 2)
        scenes = make_scenes(engine, count + WARM_UP + rounds * share)
        async with poster(url, [scene.body for scene in scenes]) as client:
            alone = await one_at_a_time(engine, client, scenes[: count + WARM_UP])
            full = await saturated(engine, client, scenes, count + WARM_UP, share)
    return {"engine": name, "scenes": count, **alone, **full}


def make_engine(name: EngineName) -> Engine:
    if name == "vllm":
        return VllmEngine(DEMO_MODEL, VllmOptions(dtype="float32", max_num_seqs=UNDER_WAY))
    return TransformersEngine(DEMO_MODEL, max_batch=UNDER_WAY)


@asynccontextmanager
async def serving(engine: Engine) -> AsyncIterator[str]:
    """The engine's server on this event loop, once it is ready, by its URL."""
    settings = Settings(max_running_prompts=UNDER_WAY)
    app = create_app(settings, engine)
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_keep_alive=300)
    server = uvicorn.Server(config)
    port = free_port()
    running = asyncio.create_task(server.serve([bind("127.0.0.1", port, "port")]))
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx2.AsyncClient(base_url=url) as http:
            while not await _is_ready(http):
                if running.done():
                    raise SystemExit("the server did not start: see the log")
                await asyncio.sleep(0.1)
        yield url
    finally:
        server.should_exit = True
        await running


async def _is_ready(http: httpx2.AsyncClient) -> bool:
    try:
        if (await http.get("/readyz")).status_code == 200:
            return True
        if (await http.get("/livez")).status_code != 200:
            raise SystemExit("the engine did not start: see the log")
    except httpx2.TransportError:
        pass
    return False


def make_scenes(engine: Engine, count: int) -> list[Scene]:
    wanted = EngineSize(engine.capabilities.max_pixels, engine.capabilities.input_hw)
    scenes = []
    for number, case in enumerate(load_cases(DATA, SPLIT, count, SCENE_PX)):
        buffer = io.BytesIO()
        Image.fromarray(case.image_hw3).resize(SIZE).save(buffer, "JPEG", quality=90)
        body = {
            "image": {"base64": base64.b64encode(buffer.getvalue()).decode()},
            "prompts": [case.phrase],
            "max_tokens": MAX_TOKENS,
            "return": ["polygons", "bbox", "rle"],
        }
        began = time.perf_counter()
        pixels_hw3 = pixels_of(buffer.getvalue(), wanted)
        decode_ms = (time.perf_counter() - began) * 1e3
        request = GenerationRequest(
            request_id=f"engine {number}",
            image_hw3=pixels_hw3,
            image_key=f"engine {number}",
            instruction=instruction("region", case.phrase),
            target="region",
            max_tokens=MAX_TOKENS,
            max_points=Settings().default_max_points,
        )
        scenes.append(Scene(json.dumps(body), request, decode_ms))
    return scenes


def pixels_of(data: bytes, wanted: EngineSize) -> NDArray[np.uint8]:
    settings = Settings()
    return decode(judged(data, wanted, settings, "image"), settings, "image").pixels_hw3


async def engine_ms(engine: Engine, request: GenerationRequest) -> float:
    """Milliseconds that the engine takes for an answer, asked by itself."""
    began = time.perf_counter()
    async with aclosing(engine.generate(request)) as deltas:
        async for _ in deltas:
            pass
    return (time.perf_counter() - began) * 1e3


async def one_at_a_time(engine: Engine, client: Poster, scenes: Sequence[Scene]) -> dict[str, Any]:
    alone: list[float] = []
    asked: list[Answered] = []
    for place, scene in enumerate(scenes):
        if place % 2:
            alone.append(await engine_ms(engine, scene.request))
        asked += (await client.post(range(place, place + 1), 1))[1]
        if not place % 2:
            alone.append(await engine_ms(engine, scene.request))
    alone, asked = alone[WARM_UP:], asked[WARM_UP:]
    segment = statistics.median(one.ms for one in asked)
    differences = [one.ms - ms for one, ms in zip(asked, alone, strict=True)]
    outside = [one.ms - one.timings_ms["total"] for one in asked]
    names = dict.fromkeys(name for one in asked for name in one.timings_ms)
    stages = {
        name: _median([one.timings_ms[name] for one in asked if name in one.timings_ms])
        for name in names
    }
    beside = [one.ms - one.timings_ms["generate"] for one in asked]
    return {
        "front_end_ms": _median(differences),
        "beside_generate_ms": _median(beside),
        "segment_p50_ms": round(segment, 3),
        "engine_p50_ms": _median(alone),
        "stages_ms": stages,
        "decode_alone_ms": _median([scene.decode_ms for scene in scenes]),
        "outside_ms": _median(outside),
    }


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 3)


async def saturated(
    engine: Engine, client: Poster, scenes: Sequence[Scene], first: int, share: int
) -> dict[str, Any]:
    """The rates of engine and server on the same scenes, round by round."""
    ratios, rates, costs = [], [], []
    for number, at in enumerate(range(first, len(scenes), share)):
        places = range(at, at + share)
        seconds: dict[str, float] = {}
        cost: dict[str, float] = {}
        for side in ("engine", "segment")[:: 1 if number % 2 else -1]:
            cpu_s = tree_seconds(os.getpid(), client.pid)
            if side == "segment":
                seconds[side] = (await client.post(places, UNDER_WAY))[0]
            else:
                began = time.perf_counter()
                calls = [engine_ms(engine, scenes[place].request) for place in places]
                await closed_loop(calls, UNDER_WAY)
                seconds[side] = time.perf_counter() - began
            cost[side] = (tree_seconds(os.getpid(), client.pid) - cpu_s) / share * 1e3
        costs.append(cost)
        ratios.append(seconds["segment"] / seconds["engine"])
        rates.append({side: share / seconds[side] for side in seconds})
    return {
        "cost_at_saturation": _median(ratios),
        "cost_at_saturation_all": [round(ratio, 3) for ratio in ratios],
        "masks_per_s": _medians(rates),
        "cpu_ms_per_mask": _medians(costs),
        "under_way": UNDER_WAY,
    }


def _medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    return {side: _median([one[side] for one in rounds]) for side in ("engine", "segment")}


if __name__ == "__main__":
    main()
