"""Images as data URLs, each encoded once for all prompts about it."""

import asyncio
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from simpleseg_polygon.geometry import ImageSize
from simpleseg_server.engines.base import GenerationRequest
from simpleseg_server.engines.picture import ImageFormat, data_url, stretched
from simpleseg_server.pixels import EngineSize


class ImageUrls:
    """The URLs of the images last asked about, ``most_bytes`` of them.

    Used from one event loop; encoding runs in threads. ``image_key`` is an image's identity.
    """

    def __init__(
        self, size: EngineSize, image_format: ImageFormat, *, most_bytes: int = 64 * 2**20
    ) -> None:
        self._size = size
        self._format = image_format
        self._most_bytes = most_bytes
        self._tasks: OrderedDict[str, asyncio.Task[str]] = OrderedDict()

    async def of(self, request: GenerationRequest) -> str:
        key = request.image_key
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.create_task(asyncio.to_thread(self._encode, request.image_hw3))
            self._tasks[key] = task
        self._tasks.move_to_end(key)
        try:
            return await asyncio.shield(task)  # others may wait for the same image
        finally:
            self._forget()

    def _encode(self, image_hw3: NDArray[np.uint8]) -> str:
        height, width = image_hw3.shape[:2]
        size = self._size.fit(ImageSize(height, width))
        return data_url(stretched(image_hw3, (size.height, size.width)), self._format)

    def _forget(self) -> None:
        """Drop what failed, and the oldest beyond the bytes allowed."""
        held = 0
        for key, task in reversed(list(self._tasks.items())):
            if not task.done():
                continue
            failed = task.cancelled() or task.exception() is not None
            held += 0 if failed else len(task.result())
            if failed or held > self._most_bytes:
                del self._tasks[key]
