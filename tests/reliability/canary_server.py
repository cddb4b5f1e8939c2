"""A server in a process of its own: a scripted engine that prompts give orders to, and a route that
tells what the process holds. ``python canary_server.py name=value ...``; the values are settings.

The words of a prompt say what the engine does: see ``ORDERS``; any other is answered with a
triangle. ``GET /-/held`` answers with the threads and tasks of the process, those of thread pools,
which live as long as it does, left out.
"""

import asyncio
import gc
import sys
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI

from simpleseg_server.app import create_app
from simpleseg_server.config import Settings
from simpleseg_server.engines.base import GenerationRequest
from simpleseg_server.engines.scripted import Reply, ScriptedEngine
from simpleseg_server.serving import run
from simpleseg_server.sources import load

TRIANGLE = "[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]]."
ANSWERS = {"region": TRIANGLE, "box": "[[0.1, 0.1, 0.5, 0.5]].", "point": "[[0.25, 0.75]]."}
ORDERS = {
    "canary-slow": Reply(TRIANGLE, delay_s=0.2),
    "canary-empty": Reply("[]."),
    "canary-prose": Reply("I see nothing of that kind."),
    "canary-cut": Reply(TRIANGLE[:-9], finish_reason="length"),
    "canary-long": Reply("[[" + ", ".join(["[0.123, 0.456]"] * 1000) + "]]."),
    "canary-error": Reply(TRIANGLE, fault="error", fault_after=2),
    "canary-busy": Reply(TRIANGLE, fault="busy"),
    "canary-hang": Reply(TRIANGLE, fault="hang", fault_after=1),
    "canary-death": Reply(TRIANGLE, fault="death"),
}
_POOLS = ("simpleseg-worker", "asyncio_", "AnyIO worker thread")


@dataclass
class Heard:
    """How many prompts the engine has heard, and the names and texts of the last few."""

    count: int = 0
    last: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=8))


HEARD = Heard()


def reply(request: GenerationRequest) -> Reply:
    HEARD.count += 1
    HEARD.last.append((request.request_id, request.instruction))
    ordered = [order for word, order in ORDERS.items() if word in request.instruction]
    return ordered[0] if ordered else Reply(ANSWERS.get(request.target, "a thing"))


class Forgetful(list[GenerationRequest]):
    """What engines keep of requests in tests would be a leak here."""

    def append(self, _: GenerationRequest) -> None:
        return


async def held() -> dict[str, Any]:
    threads = [thread.name for thread in threading.enumerate()]
    return {
        "threads": sorted(name for name in threads if not name.startswith(_POOLS)),
        "tasks": len(asyncio.all_tasks()),
        "frozen": gc.get_freeze_count(),
        "collected": len(gc.get_objects()),
        "asked": HEARD.count,
        "last": list(HEARD.last),
    }


def make(settings: Settings, stop: Any) -> FastAPI:
    engine = ScriptedEngine(reply)
    engine.requests = Forgetful()
    app = create_app(settings, engine, on_engine_failure=stop)
    app.add_api_route("/-/held", held)
    return app


if __name__ == "__main__":
    given = load({}, None, dict(item.split("=", 1) for item in sys.argv[1:])).settings
    run(given, lambda stop: make(given, stop), lambda: None)
