"""The shipped model behind the real server and vLLM, asked over HTTP by several clients at once.

    python benchmarks/gpu/serve_demo.py [--device cuda] [--quick] [--json]

Starts ``simpleseg serve --engine vllm`` on a free port, waits until it is ready, asks about
held-out scenes, and stops it. The last line printed with ``--json`` is one object: for each number
of requests under way the latency by percentiles, requests a second and the mean IoU.
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import torch

sys.path.append(str(Path(__file__).parents[1]))

from machine import accelerator

from simpleseg import AsyncSimpleSeg
from simpleseg.bench.hardware import hardware
from simpleseg_polygon.metrics import iou
from simpleseg_training.cases import Case, load_cases

PERCENTILES = (50, 90, 99)
READY_WITHIN_S = 420
ANSWER_WITHIN_S = 300.0
IMAGE_PX = 128
UNDER_WAY = (1, 8, 64)


@contextmanager
def server(dtype: str, most: int, log: Path) -> Iterator[tuple[str, float]]:
    """The address of a server that is ready, and the seconds until it was."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "simpleseg.cli", "serve", "--engine", "vllm"]
    command += ["--port", str(port), "--dtype", dtype, "--max-batch", str(most)]
    environment = os.environ | {"SIMPLESEG_MAX_QUEUED_REQUESTS": str(2 * most)}
    url = f"http://127.0.0.1:{port}"
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            _wait_until_ready(url, process)
            yield url, time.monotonic() - began
        finally:
            process.terminate()
            process.wait(60)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < give_up:
        if process.poll() is not None:
            raise SystemExit(f"the server stopped with {process.returncode}")
        try:
            if httpx2.get(f"{url}/readyz").status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.5)
    raise SystemExit(f"the server was not ready within {READY_WITHIN_S} s")


async def load(url: str, cases: Sequence[Case], under_way: int, count: int) -> dict[str, Any]:
    slots = asyncio.Semaphore(under_way)
    limits = httpx2.Limits(max_connections=under_way)
    async with httpx2.AsyncClient(limits=limits) as http:
        client = AsyncSimpleSeg(url, http_client=http, max_retries=0)

        async def one(number: int) -> tuple[float, float]:
            case = cases[number % len(cases)]
            async with slots:
                began = time.perf_counter()
                answer = await client.segment(case.image_hw3, case.phrase, timeout=ANSWER_WITHIN_S)
                seconds = time.perf_counter() - began
            return seconds, iou(answer.mask(), case.mask_hw)

        began = time.perf_counter()
        done = await asyncio.gather(*(one(number) for number in range(count)))
        elapsed = time.perf_counter() - began
    milliseconds = [seconds * 1e3 for seconds, _ in done]
    return {
        "requests": count,
        "requests_per_s": round(count / elapsed, 2),
        **{f"p{at}_ms": round(float(np.percentile(milliseconds, at)), 2) for at in PERCENTILES},
        "mean_iou": round(float(np.mean([found for _, found in done])), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="The shipped model behind the server and vLLM.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--requests", type=int, default=512, help="at each level")
    parser.add_argument("--log", type=Path, default=Path("serve.log"), help="the server's output")
    parser.add_argument("--json", action="store_true", help="print one JSON object, last")
    parser.add_argument("--quick", action="store_true", help="24 requests, 1 and 4 under way")
    options = parser.parse_args()
    levels = (1, 4) if options.quick else UNDER_WAY
    count = 24 if options.quick else options.requests

    # Different images at every level, as the server knows an image again.
    cases = load_cases("demo-multi", "test", (count + 2) * len(levels), IMAGE_PX)
    figures: dict[str, Any] = {"dtype": options.dtype, "under_way": {}}
    with server(options.dtype, max(levels), options.log) as (url, ready_s):
        figures["ready_s"] = round(ready_s, 1)
        for at, level in enumerate(levels):
            own = cases[at * (count + 2) :]
            asyncio.run(load(url, own[count:], min(level, 2), 2))
            figures["under_way"][str(level)] = asyncio.run(load(url, own, level, count))
            print(f"{level} under way: {figures['under_way'][str(level)]}", flush=True)
    figures["hardware"] = hardware("transformers") | accelerator(options.device)
    figures["command"] = " ".join(sys.argv)
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
