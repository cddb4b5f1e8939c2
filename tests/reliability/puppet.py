"""An engine for a process of its own that instructions give orders to, and whose answers tell which
image and which question they belong to."""

import asyncio
import hashlib
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from simpleseg_polygon.prompts import TARGETS, instruction
from simpleseg_server.engines.base import Capabilities, GenerationRequest
from simpleseg_server.engines.scripted import Reply, ScriptedEngine


def ask(number: int, phrase: str = "the dog", **options: object) -> GenerationRequest:
    """A request about an image that no other number has."""
    image = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    asked = GenerationRequest(
        request_id=f"request-{number}",
        image_hw3=image,
        image_key=f"image-{number}",
        instruction=instruction("region", f"{phrase} {number}"),
        target="region",
        max_tokens=256,
    )
    return replace(asked, **options) if options else asked  # type: ignore[arg-type]


def answer_to(request: GenerationRequest) -> str:
    """A region whose vertices come from the pixels and the words, so that no two are alike."""
    said = request.image_hw3.tobytes() + request.instruction.encode()
    numbers = [byte / 256 for byte in hashlib.blake2b(said, digest_size=12).digest()]
    points = [[round(x, 3), round(y, 3)] for x, y in zip(*[iter(numbers)] * 2, strict=True)]
    return f"{[points]}."


@dataclass(frozen=True)
class Puppet:
    """Makes the engine; ``folder`` is where it leaves marks, also of earlier processes.

    ``life_s`` ends the process so long after its start, unless there is a file ``healed``;
    ``most_together`` is how many requests fit into its memory.
    """

    folder: Path
    delay_s: float = 0.01
    start_s: float = 0.0
    life_s: float | None = None
    most_together: int = 99
    max_batch: int = 8

    def __call__(self) -> "PuppetEngine":
        return PuppetEngine(self)


class PuppetEngine(ScriptedEngine):
    def __init__(self, strings: Puppet) -> None:
        capabilities = Capabilities(
            engine="puppet",
            model="puppet",
            targets=TARGETS,
            max_tokens=4096,
            max_concurrency=strings.max_batch,
            max_pixels=64 * 64,
        )
        super().__init__(self._obey, capabilities=capabilities)
        self._strings = strings

    async def start(self) -> None:
        self._mark("starts")
        (self._strings.folder / "pid").write_text(str(os.getpid()))
        await asyncio.sleep(self._strings.start_s)
        await super().start()
        if self._strings.life_s is not None and not (self._strings.folder / "healed").exists():
            asyncio.get_running_loop().call_later(self._strings.life_s, os.abort)

    def _mark(self, name: str) -> int:
        """How often this was marked before, by all processes."""
        with (self._strings.folder / name).open("a+") as file:
            file.seek(0)
            before = len(file.read())
            file.write(".")
            return before

    def _obey(self, request: GenerationRequest) -> Reply:
        if self.running > self._strings.most_together:
            raise MemoryError
        for word, order in ORDERS.items():
            if word in request.instruction and (
                not word.endswith("-once") or self._mark(word) == 0
            ):
                return order()
        return Reply(answer_to(request), delay_s=self._strings.delay_s)


def _block() -> Reply:
    """Nothing of the process goes on, as if it waited for a lock."""
    while True:
        time.sleep(60)


def _stall() -> Reply:
    """Its loop is well, and no token comes."""
    return Reply("[[[0.1", fault="hang", fault_after=1)


def _hog() -> Reply:
    """More memory than it may have."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**28, in_use + 2**28))
    return Reply(str(len(bytearray(2**31))))


def _abort() -> Reply:
    os.abort()


ORDERS: dict[str, Callable[[], Reply]] = {
    "poison": _abort,
    "abort-once": _abort,
    "block-once": _block,
    "stall-once": _stall,
    "hog-once": _hog,
}
