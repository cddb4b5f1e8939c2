"""The embedded engine: a Qwen-VL checkpoint in this process, run by transformers."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily

from simpleseg_polygon.prompts import TARGETS
from simpleseg_server.engines.base import (
    Capabilities,
    Delta,
    EngineDeadError,
    EngineError,
    GenerationRequest,
)
from simpleseg_server.engines.checkpoint import Checkpoint, Patches
from simpleseg_server.engines.constraints import GrammarKind
from simpleseg_server.engines.decoding import Decoder, Job
from simpleseg_server.engines.outbox import Inbox, Outbox
from simpleseg_server.engines.warm_up import warm_up_request
from simpleseg_server.engines.worker import DecodeWorker


class TransformersEngine:
    """Qwen2.5-VL or Qwen3-VL from a checkpoint directory or hub id; see the Engine protocol.

    One thread owns the model and decodes up to ``max_batch`` requests at once (continuous batching:
    they join and leave between steps). Under the grammar an answer is drafted ahead and verified in
    the same forward pass; the answer is the one that plain decoding gives, token for token, up to
    ties of the float arithmetic, for sampling with a seed too. ``grammar`` names what constrains:
    the token table, or outlines_core's index over the same tokens. ``max_pixels`` scales larger
    images down further than the checkpoint would. ``num_threads`` sets torch's threads on a CPU;
    without it a small model gets one. ``dtype`` None is the profile's. Of the ``image_cache_size``
    images used last the features are kept, and keys and values of prompts on them, of these at most
    ``prompt_cache_bytes``; 0 keeps none.

    >>> engine = TransformersEngine("path/to/checkpoint", max_batch=4)  # loads nothing yet
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        max_batch: int = 8,
        draft: bool = True,
        max_draft: int = 8,
        device: str = "cpu",
        dtype: str | None = None,
        grammar: GrammarKind = "table",
        num_threads: int | None = None,
        max_tokens: int = 4096,
        max_pixels: int | None = None,
        image_cache_size: int = 16,
        prompt_cache_bytes: int = 512 * 2**20,
    ) -> None:
        self._model_path = model_path
        self._max_batch = max_batch
        self._draft = draft
        self._max_draft = max_draft
        self._device = device
        self._dtype = dtype
        self._grammar = grammar
        self._num_threads = num_threads
        self._max_tokens = max_tokens
        self._max_pixels = max_pixels
        self._image_cache_size = image_cache_size
        self._prompt_cache_bytes = prompt_cache_bytes
        self._worker: DecodeWorker | None = None
        self._decoder: Decoder | None = None
        self._capabilities: Capabilities | None = None
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="simpleseg-images")
        self._prepared: dict[str, asyncio.Future[Patches]] = {}
        self._outbox = Outbox()

    @property
    def capabilities(self) -> Capabilities:
        """Raises EngineError before the engine has started."""
        if self._capabilities is None:
            raise EngineError("the engine has not started")
        return self._capabilities

    async def start(self) -> None:
        """Load the model and answer one request of every task, so that the first real one is not
        slower."""
        self._worker = DecodeWorker(
            self._load,
            self._outbox.send,
            max_batch=self._max_batch,
            num_threads=self._num_threads,
        )
        try:
            self._decoder = await asyncio.wrap_future(self._worker.started)
        except Exception as error:
            raise EngineError(f"cannot load {self._model_path}: {error}") from error
        checkpoint = self._decoder.checkpoint
        self._capabilities = Capabilities(
            engine="transformers",
            model=checkpoint.name,
            targets=TARGETS,
            max_tokens=min(
                self._max_tokens, checkpoint.profile.max_tokens, checkpoint.max_positions
            ),
            max_concurrency=self._max_batch,
            max_pixels=checkpoint.max_pixels,
            input_hw=checkpoint.input_hw,
            calibrations=checkpoint.profile.calibration,
        )
        try:
            for target in TARGETS:
                async for _ in self.generate(warm_up_request(target, checkpoint.input_hw)):
                    pass
        except EngineError:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop after the step under way; running requests get EngineDeadError. Idempotent."""
        if self._worker is not None:
            self._worker.close()
            await asyncio.wrap_future(self._worker.stopped)
        self._preparing.shutdown(wait=False)

    def check_health(self) -> None:
        """Raise EngineDeadError where the decode thread has ended or never began."""
        if self._worker is None:
            raise EngineDeadError("the engine has not started")
        self._worker.check_alive()

    def collect(self) -> Iterable[Metric]:
        """How often what earlier prompts had left could be used, for ``/metrics``."""
        text = "Looked up of earlier prompts: an image's features, a prompt's keys and values."
        family = CounterMetricFamily("simpleseg_engine_cache", text, labels=("kind", "outcome"))
        assert self._decoder is not None
        for (kind, is_hit), count in self._decoder.images.lookups.items():
            family.add_metric((kind, "hit" if is_hit else "miss"), count)
        yield family

    def tokenize(self, text: str) -> list[int]:
        assert self._decoder is not None
        return self._decoder.checkpoint.text_ids(text)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """Stream the answer; closing the iterator cancels it. Raises EngineError."""
        self.check_health()
        worker = self._worker
        assert worker is not None
        if request.max_tokens > self.capabilities.max_tokens:
            raise EngineError(f"max_tokens is above {self.capabilities.max_tokens}")
        loop = asyncio.get_running_loop()
        received: Inbox = asyncio.Queue()
        began = time.perf_counter()
        patches = await self._prepare(request)
        job = Job(
            request,
            deliver=lambda item: self._outbox.put(loop, received, item),
            patches=patches,
            prepare_ms=(time.perf_counter() - began) * 1e3,
        )
        worker.submit(job)
        try:
            while True:
                item = await received.get()
                if isinstance(item, EngineError):
                    raise item
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            worker.cancel(job)

    async def _prepare(self, request: GenerationRequest) -> Patches | None:
        """The image as patches, made off the event loop and off the decode thread, and once for
        prompts that come together."""
        assert self._decoder is not None
        key = request.image_key
        if key in self._decoder.images:
            return None
        prepared = self._prepared.get(key)
        if prepared is None:
            make = self._decoder.checkpoint.patches
            loop = asyncio.get_running_loop()
            prepared = loop.run_in_executor(self._preparing, make, request.image_hw3)
            self._prepared[key] = prepared
            prepared.add_done_callback(lambda done: self._forget(key, done))
        try:
            return await asyncio.shield(prepared)  # others may wait for it too
        except (ValueError, RuntimeError) as error:
            raise EngineError(f"the image cannot be prepared: {error}") from error

    def _forget(self, image_key: str, done: "asyncio.Future[Patches]") -> None:
        del self._prepared[image_key]
        if not done.cancelled():
            done.exception()  # seen, although all who waited may have left

    def _load(self) -> Decoder:
        checkpoint = Checkpoint(
            self._model_path,
            device=self._device,
            dtype=self._dtype,
            max_pixels=self._max_pixels,
        )
        return Decoder(
            checkpoint,
            draft=self._draft,
            max_draft=self._max_draft,
            grammar_kind=self._grammar,
            image_cache_size=self._image_cache_size,
            prompt_cache_bytes=self._prompt_cache_bytes,
        )
