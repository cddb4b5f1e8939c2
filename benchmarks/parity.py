"""Held-out scenes alone and all at once, in the embedded engine and in vLLM: the same tokens?

    python benchmarks/parity.py [--limit 16] [--json]

Everything in float32 on the demo model, greedy. With ``--json`` the last line printed is one
object: for each way of answering, ``identical`` counts the answers that are those of the embedded
engine alone, token for token, and ``differences`` has the two tokens where another one parts, with
their log-probabilities; those of a tie are nearly the same.
"""

import argparse
import asyncio
import json
from typing import Any

from drafting_engines import (
    DATA,
    DEMO_MODEL,
    PACKAGES,
    SPLIT,
    Answer,
    answer,
    differences,
    requests,
)
from provenance import provenance

from simpleseg_server.engines.base import Engine
from simpleseg_server.engines.transformers import TransformersEngine
from simpleseg_server.engines.vllm import VllmEngine
from simpleseg_server.engines.vllm_backend import VllmOptions


async def alone_and_together(engine: Engine, limit: int) -> tuple[list[Answer], list[Answer]]:
    """Every scene by itself, then all at once."""
    await engine.start()
    try:
        alone = [await answer(engine, request) for request in requests(limit)]
        together = await asyncio.gather(*(answer(engine, one) for one in requests(limit)))
    finally:
        await engine.close()
    return alone, together


def compare(limit: int) -> dict[str, dict[str, Any]]:
    """Each way of answering against the embedded engine, one request at a time."""
    engines: dict[str, Engine] = {
        "embedded": TransformersEngine(DEMO_MODEL),
        "vllm": VllmEngine(DEMO_MODEL, VllmOptions(dtype="float32", draft=False)),
        "vllm, drafting": VllmEngine(DEMO_MODEL, VllmOptions(dtype="float32")),
    }
    found: dict[str, dict[str, Any]] = {}
    wanted: list[Answer] | None = None
    for name, engine in engines.items():
        alone, together = asyncio.run(alone_and_together(engine, limit))
        wanted = wanted or alone
        for way, answers in (("alone", alone), ("together", together)):
            parted = differences(wanted, answers)
            found[f"{name}, {way}"] = {"identical": limit - len(parted), "differences": parted}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=16, help="scenes")
    parser.add_argument("--json", action="store_true", help="print one JSON object, last")
    options = parser.parse_args()
    said = provenance(*PACKAGES, model="simpleseg-demo, float32", inputs=f"{DATA} {SPLIT}")
    found = compare(options.limit)
    for name, counts in found.items():
        print(f"{name:<26} {counts['identical']:>3} of {options.limit}")
    if options.json:
        print(json.dumps({**said, "of": options.limit, "ways": found}))


if __name__ == "__main__":
    main()
