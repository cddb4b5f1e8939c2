"""Where images are decoded, and how many pixels at once."""

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from simpleseg_polygon.geometry import WHOLE, Box
from simpleseg_server.config import Settings
from simpleseg_server.decode_pool import Death, DecodePool, NoDecoderError
from simpleseg_server.decode_process import Limits
from simpleseg_server.decoded_cache import DecodedCache
from simpleseg_server.errors import overloaded
from simpleseg_server.images import DecodedImage, decode, judged
from simpleseg_server.pixels import EngineSize, Reading, guard_pillow, read_picture
from simpleseg_server.telemetry import Metrics


class PixelBudget:
    """At most ``limit`` pixels taken at once; who must wait is served in the order of coming. For
    one event loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.taken = 0

    async def take(self, pixels: int) -> None:
        """Wait for so many, ``limit`` at most."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((pixels, turn))
        self._grant()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._grant()  # it may have stood before others for whom there is room
            else:
                self.give_back(pixels)
            raise

    def give_back(self, pixels: int) -> None:
        self.taken -= pixels
        self._grant()

    def _grant(self) -> None:
        while self._waiting:
            pixels, turn = self._waiting[0]
            if not turn.cancelled():
                if self.taken + pixels > self._limit:
                    return
                self.taken += pixels
                turn.set_result(None)
            self._waiting.popleft()


class ImageIntake:
    """Files from clients in, pixels for the engine out. For one event loop.

    ``workers`` are the threads that wait for the processes that decode, or that decode themselves
    where the settings say so.
    """

    def __init__(self, settings: Settings, workers: ThreadPoolExecutor, metrics: Metrics) -> None:
        self._settings = settings
        self._workers = workers
        self._pool = _pool(settings, metrics)
        self._read = read_picture if self._pool is None else self._pool.read
        self._decoded = DecodedCache(
            settings.max_decoded_image_bytes,
            on_look=lambda look: metrics.decoded_images.labels(look).inc(),
        )
        self.budget = PixelBudget(settings.max_pixels_in_flight)

    def start(self) -> None:
        """Have decoders started, while there is time for it."""
        if self._pool is not None:
            self._pool.start()

    def close(self) -> None:
        """Once the worker threads have ended."""
        if self._pool is not None:
            self._pool.close()

    async def decode(
        self, data: bytes, wanted: EngineSize, param: str, view: Box = WHOLE
    ) -> DecodedImage:
        """Raises ApiError: what ``judged`` and ``decode`` raise, and 503 overloaded."""
        reading = judged(data, wanted, self._settings, param, view)
        pixels = reading.stored.height * reading.stored.width
        await self.budget.take(pixels)
        loop = asyncio.get_running_loop()
        try:
            work = self._workers.submit(self._decode, reading, param)
        except BaseException:
            self.budget.give_back(pixels)
            raise
        # The pixels are there until the work ends, which a request that is cancelled does not.
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(self.budget.give_back, pixels))
        return await asyncio.wrap_future(work)

    def _decode(self, reading: Reading, param: str) -> DecodedImage:
        try:
            return self._decoded.get(
                reading, lambda: decode(reading, self._settings, param, self._read)
            )
        except NoDecoderError:
            raise overloaded(self._settings.retry_after_s) from None


def _pool(settings: Settings, metrics: Metrics) -> DecodePool | None:
    if settings.image_decoding == "thread":
        guard_pillow(settings.max_image_pixels, settings.max_image_metadata_bytes)
        return None
    limits = Limits(
        memory_bytes=settings.max_decoder_bytes,
        cpu_s=settings.max_decode_cpu_s,
        max_pixels=settings.max_image_pixels,
        max_metadata_bytes=settings.max_image_metadata_bytes,
    )

    def count(death: Death) -> None:
        metrics.decoder_deaths.labels(death).inc()

    return DecodePool(limits, settings.worker_threads, count)
