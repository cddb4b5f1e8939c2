"""The two engines with clocks where they do not tell times themselves: the image's way into the
model, and the vision tower."""

import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from drafting_engines import DEMO_MODEL, EngineName
from sides import HERE, UNDER_WAY

from simpleseg_server.engines import vllm_environment
from simpleseg_server.engines.base import Engine
from simpleseg_server.engines.transformers import TransformersEngine
from simpleseg_server.engines.vllm import VllmEngine
from simpleseg_server.engines.vllm_backend import Backend, Launch, VllmOptions


class Clocked(Protocol):
    """``engine`` has not started yet; ``begin`` is called once it has. ``vision_ms`` and
    ``image_ms`` give the milliseconds of each run since the last call; ``image_ms`` nothing where
    the engine tells them itself."""

    engine: Engine

    async def begin(self) -> None: ...
    async def vision_ms(self) -> list[float]: ...
    def image_ms(self) -> list[float]: ...


class ClockedEmbedded:
    def __init__(self) -> None:
        self.engine: Engine = TransformersEngine(DEMO_MODEL, max_batch=UNDER_WAY)
        self._vision_ms: list[float] = []

    async def begin(self) -> None:
        assert isinstance(self.engine, TransformersEngine)
        assert self.engine._decoder is not None
        checkpoint: Any = self.engine._decoder.checkpoint
        encode = checkpoint.encode_image

        def clocked(patches: Any) -> Any:
            began = time.perf_counter()
            features = encode(patches)
            self._vision_ms.append((time.perf_counter() - began) * 1e3)
            return features

        checkpoint.encode_image = clocked

    async def vision_ms(self) -> list[float]:
        found, self._vision_ms = self._vision_ms, []
        return found

    def image_ms(self) -> list[float]:
        return []


class ClockedVllm:
    def __init__(self) -> None:
        self._vllm: Any = None
        self._image_ms: list[float] = []
        options = VllmOptions(dtype="float32", max_num_seqs=UNDER_WAY)
        self.engine: Engine = VllmEngine(DEMO_MODEL, options, start_backend=self._start)

    def _start(self, launch: Launch) -> Backend:
        # The process that runs the model imports the extension.
        os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        vllm_environment.prepare()
        from simpleseg_server.engines.vllm_compat import VllmBackend

        extension = "vision_clock.VisionClock"
        backend: Any = VllmBackend.start(launch, worker_extension_cls=extension)
        self._vllm = backend._engine
        backend._render = self._clocked(backend._render)
        started: Backend = backend
        return started

    def _clocked(self, render: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
        async def clocked(generation: Any) -> Any:
            began = time.perf_counter()
            rendered = await render(generation)
            self._image_ms.append((time.perf_counter() - began) * 1e3)
            return rendered

        return clocked

    async def begin(self) -> None:
        await self._vllm.collective_rpc("start_vision_clock")
        self.image_ms()

    async def vision_ms(self) -> list[float]:
        [found] = await self._vllm.collective_rpc("vision_ms")
        times: list[float] = found
        return times

    def image_ms(self) -> list[float]:
        found, self._image_ms = self._image_ms, []
        return found


def clocked(name: EngineName) -> Clocked:
    return ClockedVllm() if name == "vllm" else ClockedEmbedded()
