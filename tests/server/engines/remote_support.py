"""What the tests of the remote engine share: upstreams, engines on them, and waiting."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Protocol

from simpleseg_server.engines.base import (
    EngineAwayError,
    GenerationRequest,
)
from simpleseg_server.engines.remote import RemoteEngine, RemoteOptions
from simpleseg_server.engines.upstream_http import Timeouts
from simpleseg_server.engines.upstreams import Address, choose

from .fake_upstream import Asked, FakeUpstream
from .support import ask

REGION = "[[[0.1, 0.1], [0.5, 0.1], [0.5, 0.5], [0.1, 0.5]]]."
CUT = "[[[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]]]"
ANSWERS = {"bounding box": "[0.1, 0.1, 0.5, 0.5].", "point": "[0.25, 0.75].", "Describe": "a thing"}
QUICK = Timeouts(connect_s=2.0, probe_s=1.0, first_token_s=0.5, idle_s=0.4)
PATIENT = Timeouts(connect_s=5.0, probe_s=5.0, first_token_s=20.0, idle_s=20.0)


def usual(asked: Asked) -> str:
    found = [text for words, text in ANSWERS.items() if words in asked.instruction]
    return found[0] if found else REGION


MakeUpstream = Callable[..., FakeUpstream]


class HasUrl(Protocol):
    @property
    def url(self) -> str: ...


def options(*upstreams: HasUrl, **changes: Any) -> RemoteOptions:
    addresses = tuple(Address(upstream.url) for upstream in upstreams)
    settings: dict[str, Any] = {"timeouts": PATIENT, "probe_interval_s": 0.1} | changes
    return RemoteOptions(addresses, **settings)


@asynccontextmanager
async def running(*upstreams: HasUrl, **changes: Any) -> AsyncIterator[RemoteEngine]:
    engine = RemoteEngine(options(*upstreams, **changes))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.005)


async def collect(engine: RemoteEngine, texts: list[str]) -> None:
    async for delta in engine.generate(ask(0)):
        texts.append(delta.text)


def is_well(engine: RemoteEngine) -> bool:
    try:
        engine.check_health()
    except EngineAwayError:
        return False
    return True


def ask_for(engine: RemoteEngine, number: int) -> GenerationRequest:
    """A request on an image of upstream ``number``."""
    upstreams = engine._upstreams
    keys = (f"image {n}" for n in range(1000))
    wanted = upstreams[number]
    return replace(ask(0), image_key=next(k for k in keys if choose(upstreams, k, ()) is wanted))
