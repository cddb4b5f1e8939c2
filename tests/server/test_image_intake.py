"""Where images are decoded makes no difference to what comes out; pixels in flight are bounded."""

import asyncio
import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simpleseg_polygon.geometry import WHOLE, Box
from simpleseg_server.config import Settings
from simpleseg_server.decode_pool import DecodePool
from simpleseg_server.decode_process import Limits, pack, unpack
from simpleseg_server.image_intake import ImageIntake, PixelBudget
from simpleseg_server.images import decode, judged
from simpleseg_server.pixels import EngineSize, PictureError, Reading, read_picture
from simpleseg_server.telemetry import Metrics

SETTINGS = Settings()
LARGE = EngineSize(10**6)
LIMITS = Limits(2**29, 2.0, SETTINGS.max_image_pixels, SETTINGS.max_image_metadata_bytes)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    pool = DecodePool(LIMITS, 1)
    yield pool
    pool.close()


def picture(name: str, **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, name, exif=exif, **options)
    return buffer.getvalue()


def reading(data: bytes, wanted: EngineSize = LARGE, view: Box = WHOLE) -> Reading:
    return judged(data, wanted, SETTINGS, "image", view)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("wanted", [EngineSize(10**6), EngineSize(600), EngineSize(9, (28, 42))])
@pytest.mark.parametrize("view", [WHOLE, Box(0.2, 0.3, 0.75, 0.8)])
def test_a_process_gives_what_a_thread_gives(
    name: str, wanted: EngineSize, view: Box, pool: DecodePool
) -> None:
    asked = reading(picture(name), wanted, view)
    here = decode(asked, SETTINGS, "image")
    there = decode(asked, SETTINGS, "image", pool.read)
    assert (here.pixels_hw3 == there.pixels_hw3).all()
    assert (here.key, here.size, here.view) == (there.key, there.size, there.view)
    assert there.exif_applied
    assert unpack(pack(asked), asked.data) == asked


def test_a_process_tells_why_there_is_no_picture(pool: DecodePool) -> None:
    cut = reading(picture("PNG")[:-100])
    for read in (read_picture, pool.read):
        with pytest.raises(PictureError) as caught:
            read(cut)
        assert caught.value.code == "image_truncated"


def test_a_pool_that_was_closed_starts_again(pool: DecodePool) -> None:
    pool.close()
    assert pool.read(reading(picture("PNG"))).orientation == 6


def test_pixels_are_given_in_the_order_of_coming() -> None:
    async def scenario() -> list[str]:
        budget, order = PixelBudget(10), list[str]()

        async def one(name: str, pixels: int) -> None:
            await budget.take(pixels)
            order.append(name)
            await asyncio.sleep(0)
            assert budget.taken <= 10
            budget.give_back(pixels)

        names = {"large": 10, "small": 1, "half": 5, "other half": 5, "huge": 10}
        await asyncio.gather(*(one(name, pixels) for name, pixels in names.items()))
        assert budget.taken == 0
        return order

    assert asyncio.run(scenario()) == ["large", "small", "half", "other half", "huge"]


def test_one_that_gives_up_waiting_is_passed_over() -> None:
    async def scenario() -> None:
        budget = PixelBudget(10)
        await budget.take(6)
        large = asyncio.create_task(budget.take(8))
        small = asyncio.create_task(budget.take(4))
        await asyncio.sleep(0)
        assert not small.done()  # it would delay the large one for ever
        large.cancel()
        await small
        assert budget.taken == 10

    asyncio.run(scenario())


def test_a_cancelled_request_keeps_its_pixels_until_they_are_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(*args: Any) -> Any:
        entered.set()
        assert leave.wait(20)
        return decode(*args)

    monkeypatch.setattr("simpleseg_server.image_intake.decode", slow)

    async def scenario() -> None:
        with ThreadPoolExecutor(1) as workers:
            intake = ImageIntake(Settings(image_decoding="thread"), workers, Metrics())
            work = asyncio.create_task(intake.decode(picture("PNG"), LARGE, "image"))
            while not entered.is_set():
                await asyncio.sleep(0.001)
            work.cancel()
            await asyncio.wait([work])
            assert intake.budget.taken == 60 * 40
            leave.set()
            while intake.budget.taken:
                await asyncio.sleep(0.001)

    asyncio.run(scenario())
