"""Time to the first token of a second, other prompt on an image, against that of the first one.

    python benchmarks/second_prompt.py [--engine embedded|vllm] [--quick] [--json] [--limit N]

The demo model, greedily, in float32, one prompt at a time: every held-out scene is new when its
first prompt comes, and the second follows at once, so that the two take turns over all scenes.
``engine`` asks the engine, ``segment`` sends the image with every prompt to ``POST /segment`` of a
server in this process, ``jpeg`` sends it as a JPEG of 640x480, ``kept`` names an image that ``POST
/v1/images`` took before; the last three read ``first_token``, the time since the request came in,
from the response. ``together`` asks the engine both prompts at once, as ``/segment`` does with all
prompts of a request, by turns with the first alone on another image: what the second costs is how
much later both have their first token. All go through scenes of their own. ``--limit`` is how many
scenes each.

With ``--json`` the last line printed is one object: for each of them the medians in
milliseconds of first and second prompts (of ``together``, what the second costs), their ratio, the
tokens of a prompt and how many of the second's were cached; ``second_prompt_ttft_ratio`` is the
engine's ratio.
"""

import argparse
import asyncio
import base64
import io
import json
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, get_args

import httpx2
from drafting_engines import DATA, DEMO_MODEL, PACKAGES, SIZE_PX, SPLIT, EngineName
from PIL import Image
from provenance import provenance

from simpleseg_polygon.prompts import instruction
from simpleseg_server.app import create_app
from simpleseg_server.config import Settings
from simpleseg_server.engines.base import Engine, GenerationRequest, Usage
from simpleseg_server.engines.transformers import TransformersEngine
from simpleseg_server.engines.vllm import VllmEngine
from simpleseg_server.engines.vllm_backend import VllmOptions
from simpleseg_server.images import image_key
from simpleseg_training.cases import Case, load_cases

LIMIT, QUICK_LIMIT, WARM_UP = 200, 15, 5
MAX_TOKENS, MAX_POINTS = 128, 3  # the rest of an answer is not measured
REST_S = 0.05  # an engine may be at work on an answer's end for a step more
JPEG_SIZE = (640, 480)
HERE = "http://in-process"

Asked = tuple[float, Usage | None]
"""Milliseconds to the first token, and what the engine says that the prompt cost."""
Ask = Callable[[Case, str], Awaitable[Asked]]


@dataclass(frozen=True)
class Pair:
    """Two prompts on one image, the first on it and the second."""

    first: Asked
    second: Asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--engine", choices=get_args(EngineName), default="embedded")
    parser.add_argument("--json", action="store_true", help="print one object on the last line")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_LIMIT} scenes each")
    parser.add_argument("--limit", type=int, help="scenes each")
    options = parser.parse_args()
    limit = options.limit or (QUICK_LIMIT if options.quick else LIMIT)
    figures = asyncio.run(measure(options.engine, limit))
    if options.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name}: {value}" for name, value in figures.items()))


async def measure(name: EngineName, limit: int) -> dict[str, Any]:
    """Everything the benchmark reports of one engine."""
    each = limit + WARM_UP
    cases = load_cases(DATA, SPLIT, 6 * each, SIZE_PX)
    said = provenance(*PACKAGES, model="simpleseg-demo, float32", inputs=f"{DATA} {SPLIT}")
    async with served(_engine(name)) as (engine, http):
        ways = {
            "engine": summary(await pairs(_ask_engine(engine), cases[:each])),
            "segment": summary(await pairs(_ask_segment(http, png), cases[each : 2 * each])),
            "jpeg": summary(await pairs(_ask_segment(http, jpeg), cases[2 * each : 3 * each])),
            "kept": summary(await pairs(_ask_kept(http), cases[3 * each : 4 * each])),
            "together": summary(await together(_ask_engine(engine), cases[4 * each :])),
        }
    return {
        "engine": name,
        **said,
        "scenes": limit,
        "second_prompt_ttft_ratio": ways["engine"]["ratio"],
        "ways": ways,
    }


def _engine(name: EngineName) -> Engine:
    if name == "vllm":
        return VllmEngine(DEMO_MODEL, VllmOptions(dtype="float32"))
    return TransformersEngine(DEMO_MODEL)


@asynccontextmanager
async def served(engine: Engine) -> AsyncIterator[tuple[Engine, httpx2.AsyncClient]]:
    """The engine, started, and a client of a server around it."""
    app = create_app(Settings(), engine)
    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url=HERE) as http:
            while (await http.get("/readyz")).status_code != 200:
                if (await http.get("/livez")).status_code != 200:
                    raise SystemExit("the engine did not start: see the log")
                await asyncio.sleep(0.1)
            yield engine, http


async def pairs(ask: Ask, cases: Sequence[Case]) -> list[Pair]:
    """Two prompts on every image: its own and the next image's, by turns the one first."""
    found = []
    for number, case in enumerate(cases):
        phrases = [case.phrase, cases[number - 1].phrase]
        first, second = phrases if number % 2 else phrases[::-1]
        pair = []
        for phrase in (first, second):
            await asyncio.sleep(REST_S)
            pair.append(await ask(case, phrase))
        found.append(Pair(*pair))
    return found[WARM_UP:]


async def together(ask: Ask, cases: Sequence[Case]) -> list[Pair]:
    """On every other image its prompt alone, on the next its own and the other's at once;
    ``second`` is how much later the last of those two has its first token."""
    found = []
    for alone, shared in zip(cases[::2], cases[1::2], strict=True):
        await asyncio.sleep(REST_S)
        first = await ask(alone, alone.phrase)
        await asyncio.sleep(REST_S)
        both = await asyncio.gather(ask(shared, shared.phrase), ask(shared, alone.phrase))
        last_ms, usage = max(both, key=lambda asked: asked[0])
        found.append(Pair(first, (last_ms - first[0], usage)))
    return found[WARM_UP:]


def summary(found: Sequence[Pair]) -> dict[str, Any]:
    """The medians of first and second prompts and their ratio, with its quartiles over images."""
    first = statistics.median(pair.first[0] for pair in found)
    second = statistics.median(pair.second[0] for pair in found)
    quartiles = statistics.quantiles((pair.second[0] / pair.first[0] for pair in found), n=4)
    told: dict[str, Any] = {
        "first_ms": round(first, 2),
        "second_ms": round(second, 2),
        "ratio": round(second / first, 3),
        "ratio_of_an_image_quartiles": [round(quartile, 3) for quartile in quartiles],
    }
    usages = [pair.second[1] for pair in found if pair.second[1] is not None]
    if usages:
        told["prompt_tokens"] = statistics.median(usage.prompt_tokens for usage in usages)
        told["cached_tokens"] = statistics.median(usage.cached_tokens or 0 for usage in usages)
    return told


def _ask_engine(engine: Engine) -> Ask:
    async def ask(case: Case, phrase: str) -> Asked:
        request = GenerationRequest(
            request_id="second prompt",
            image_hw3=case.image_hw3,
            image_key=image_key(case.image_hw3),
            instruction=instruction("region", phrase),
            target="region",
            max_tokens=MAX_TOKENS,
            max_points=MAX_POINTS,
        )
        began = time.perf_counter()
        first_ms, usage = 0.0, None
        async with aclosing(engine.generate(request)) as deltas:
            async for delta in deltas:
                first_ms = first_ms or (time.perf_counter() - began) * 1e3
                usage = delta.usage
        return first_ms, usage

    return ask


def _ask_segment(http: httpx2.AsyncClient, file_of: Callable[[Case], bytes]) -> Ask:
    async def ask(case: Case, phrase: str) -> Asked:
        return await _segment(http, _in_base64(file_of(case)), phrase)

    return ask


def _ask_kept(http: httpx2.AsyncClient) -> Ask:
    ids: dict[int, str] = {}

    async def ask(case: Case, phrase: str) -> Asked:
        if id(case) not in ids:
            upload = {"image": _in_base64(png(case))}
            answer = await http.post("/v1/images", json=upload)
            ids[id(case)] = answer.raise_for_status().json()["id"]
        return await _segment(http, {"id": ids[id(case)]}, phrase)

    return ask


async def _segment(http: httpx2.AsyncClient, image: dict[str, str], phrase: str) -> Asked:
    asked: dict[str, Any] = {"image": image, "prompts": [phrase]}
    asked |= {"max_tokens": MAX_TOKENS, "max_points": MAX_POINTS}
    answer = (await http.post("/segment", json=asked)).raise_for_status().json()
    return answer["timings_ms"]["first_token"], None


def png(case: Case) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(case.image_hw3).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(case: Case) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(case.image_hw3).resize(JPEG_SIZE).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _in_base64(file: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(file).decode()}


if __name__ == "__main__":
    main()
