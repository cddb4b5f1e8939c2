"""Where the time of one request goes, and a cost model from which a deployment can be sized.

    python benchmarks/waterfall.py [--engine embedded|vllm] [--quick] [--json]

``waterfall_ms`` is of the median request (mean of the middle fifth by time) to ``POST /segment``,
one at a time, a JPEG of 640x480 over a socket: the stages that the server tells, the vision tower
and, for vLLM, the image's way into it by clocks of their own (``clocked_engines.py``), and what is
left.

``laws`` has four (``cost_model.py``), each fitted to some measurements and checked against
others (every third, or for the engine 2 and 8 under way): decoding an image against its pixels, in
time and memory; rasterizing against vertices and outline; the engine's time for a mask against
forward passes and requests under way:

    ms = prefill + passes * (ms_per_pass_of_a_row + ms_per_pass / under_way)

With ``--json`` the last line printed is one object.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, get_args

import cost_model
from clocked_engines import Clocked, clocked
from drafting_engines import DATA, PACKAGES, SPLIT, EngineName
from front_end import SIZE, Scene, make_scenes, serving
from poster import Answered, Poster, closed_loop, poster
from provenance import provenance

from simpleseg_server.engines.base import Engine, GenerationRequest

SCENES, QUICK_SCENES, WARM_UP = 100, 10, 4
LEVELS, HELD_OUT_LEVELS = (1, 2, 4, 8, 16), (2, 8)
POINTS = (4, 12)
LARGEST_SHARE = 48
LARGEST_PX, QUICK_LARGEST_PX = 4000, 1920
BEFORE = ("read_body", "decode_image", "queue")
AFTER = ("parse", "rasterize")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--engine", choices=get_args(EngineName), default="embedded")
    parser.add_argument("--json", action="store_true", help="print one object on the last line")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SCENES} scenes")
    parser.add_argument("--scenes", type=int, help="asked one at a time")
    options = parser.parse_args()
    count = options.scenes or (QUICK_SCENES if options.quick else SCENES)
    inputs = f"{DATA} {SPLIT}, JPEG of {SIZE[0]}x{SIZE[1]} px; drawn JPEGs; star-shaped regions"
    figures = provenance(*PACKAGES, model="simpleseg-demo, float32", inputs=inputs)
    figures |= asyncio.run(measure(options.engine, count))
    figures["laws"] |= laws_without_an_engine(options.quick)
    if options.json:
        print(json.dumps(figures))
    else:
        print(json.dumps(figures, indent=1))


def laws_without_an_engine(quick: bool) -> dict[str, Any]:
    largest, repeat = (QUICK_LARGEST_PX, 3) if quick else (LARGEST_PX, 15)
    return {
        "decode_image": cost_model.decoding(largest, repeat),
        "decode_image_memory": cost_model.memory(largest),
        "rasterize": cost_model.rasterizing(20 * repeat),
    }


async def measure(name: EngineName, count: int) -> dict[str, Any]:
    watched = clocked(name)
    async with serving(watched.engine) as url:
        await watched.begin()
        share = min(LARGEST_SHARE, 2 * count)
        needed = WARM_UP + count + len(LEVELS) * len(POINTS) * share
        scenes = make_scenes(watched.engine, needed)
        async with poster(url, [one.body for one in scenes[: WARM_UP + count]]) as client:
            requests = await one_by_one(watched, client, WARM_UP + count)
        rows = await engine_rows(watched.engine, scenes[WARM_UP + count :], share)
    names = ["prefill_ms", "ms_per_pass_of_a_row", "ms_per_pass"]
    held_out = [number for number, level in enumerate(_levels()) if level in HELD_OUT_LEVELS]
    law = cost_model.checked(names, rows, held_out.__contains__)
    return {
        "engine": name,
        "requests": count,
        "waterfall_ms": waterfall(requests[WARM_UP:]),
        "laws": {"engine": law},
    }


async def one_by_one(watched: Clocked, client: Poster, count: int) -> list[dict[str, float]]:
    """The stages of requests, each alone."""
    await watched.vision_ms()
    found = []
    for place in range(count):
        [answered] = (await client.post(range(place, place + 1), 1))[1]
        vision, image = sum(await watched.vision_ms()), sum(watched.image_ms())
        found.append(stages(answered, vision, image))
    return found


def stages(answered: Answered, vision_ms: float, image_ms: float) -> dict[str, float]:
    """Milliseconds by stage, in the order in which they happen; they add up to ``total``."""
    told = answered.timings_ms
    preprocess = told.get("preprocess", 0.0) or image_ms
    inside = image_ms if not told.get("preprocess") else 0.0  # of what is told as prefill
    parts = {stage: told.get(stage, 0.0) for stage in BEFORE}
    parts |= {
        "preprocess": preprocess,
        "vision_encoder": vision_ms,
        "prefill": told["prefill"] - vision_ms - inside,
        "decode": told["decode"],
    }
    parts |= {stage: told.get(stage, 0.0) for stage in AFTER}
    parts["encode_and_other"] = answered.ms - sum(parts.values())
    return parts | {"total": answered.ms}


def waterfall(requests: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean over the middle fifth of the requests by time, so that the stages add up."""
    ordered = sorted(requests, key=lambda stages: stages["total"])
    cut = len(ordered) * 2 // 5
    middle = ordered[cut : len(ordered) - cut]
    return {stage: round(statistics.fmean(one[stage] for one in middle), 3) for stage in ordered[0]}


def _levels() -> list[int]:
    return [level for level in LEVELS for _ in POINTS]


async def engine_rows(engine: Engine, scenes: Sequence[Scene], share: int) -> list[cost_model.Row]:
    """Milliseconds of the engine for a mask, for answers of two lengths at each level."""
    rows: list[cost_model.Row] = []
    for level in LEVELS:
        for points in POINTS:
            part, scenes = scenes[:share], scenes[share:]
            requests = [replace(scene.request, max_points=points) for scene in part]
            began = time.perf_counter()
            passes = await closed_loop([_passes(engine, one) for one in requests], level)
            ms = (time.perf_counter() - began) / share * 1e3
            mean = statistics.fmean(passes)
            rows.append(((1.0, round(mean, 2), round(mean / level, 3)), ms))
    return rows


async def _passes(engine: Engine, request: GenerationRequest) -> int:
    """Forward passes of an answer."""
    async with aclosing(engine.generate(request)) as deltas:
        async for delta in deltas:
            if delta.usage is not None:
                return delta.usage.forward_passes
    raise RuntimeError("an answer without an end")


if __name__ == "__main__":
    main()
