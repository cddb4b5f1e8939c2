"""A file that comes again is not decoded again, and is never taken for another."""

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prometheus_client import generate_latest

from simpleseg_polygon.geometry import WHOLE, Box
from simpleseg_server.config import Settings
from simpleseg_server.decoded_cache import DecodedCache
from simpleseg_server.errors import ApiError
from simpleseg_server.image_intake import ImageIntake
from simpleseg_server.images import DecodedImage, decode, judged
from simpleseg_server.pixels import EngineSize
from simpleseg_server.telemetry import Metrics

SIZE = EngineSize(10**6)


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


BYTES = 40 * 60 * 3


@dataclass
class Asked:
    """Images asked for one after another of an intake, and how often one was decoded."""

    settings: Settings
    metrics: Metrics = field(default_factory=Metrics)
    decoded: int = 0

    def run(
        self, monkeypatch: pytest.MonkeyPatch, *asked: tuple[bytes, EngineSize, Box]
    ) -> list[DecodedImage | str]:
        def counted(*args: Any) -> DecodedImage:
            self.decoded += 1
            return decode(*args)

        monkeypatch.setattr("simpleseg_server.image_intake.decode", counted)
        return asyncio.run(self._all(asked))

    async def _all(self, asked: Any) -> list[DecodedImage | str]:
        found: list[DecodedImage | str] = []
        with ThreadPoolExecutor(1) as workers:
            intake = ImageIntake(self.settings, workers, self.metrics)
            for data, size, view in asked:
                try:
                    found.append(await intake.decode(data, size, "image", view))
                except ApiError as error:
                    found.append(error.code)
        return found


def settings(max_bytes: int = 2**24) -> Settings:
    return Settings(image_decoding="thread", max_decoded_image_bytes=max_bytes)


def test_the_same_file_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(settings())
    one, other, again = asked.run(
        monkeypatch, *((picture(seed), SIZE, WHOLE) for seed in (1, 2, 1))
    )
    assert asked.decoded == 2
    assert isinstance(one, DecodedImage)
    assert isinstance(other, DecodedImage)
    assert again == one
    assert one.key != other.key
    text = generate_latest(asked.metrics.registry).decode()
    assert 'simpleseg_decoded_image_cache_total{outcome="hit"} 1.0' in text
    assert 'simpleseg_decoded_image_cache_total{outcome="miss"} 2.0' in text


def test_other_sizes_and_parts_are_other_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(settings())
    ways = [(size, WHOLE) for size in (SIZE, EngineSize(600), EngineSize(9, (28, 42)))]
    ways.append((SIZE, Box(0, 0, 0.5, 1)))  # which is enlarged
    found = asked.run(monkeypatch, *((picture(1), size, view) for size, view in ways * 2))
    assert asked.decoded == len(ways)
    shapes = {image.pixels_hw3.shape for image in found if isinstance(image, DecodedImage)}
    assert len(shapes) == len(ways)
    assert found[: len(ways)] == found[len(ways) :]


def test_a_damaged_file_is_refused_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(settings())
    cut = picture(1)[:-100]
    assert asked.run(monkeypatch, *[(cut, SIZE, WHOLE)] * 2) == ["image_truncated"] * 2
    assert asked.decoded == 2


def test_none_are_kept_where_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    for room in (0, BYTES - 1):
        asked = Asked(settings(room))
        asked.run(monkeypatch, *[(picture(1), SIZE, WHOLE)] * 2)
        assert asked.decoded == 2


def test_what_was_used_least_recently_goes() -> None:
    cache, decoded = DecodedCache(2 * BYTES), list[int]()

    def get(seed: int) -> DecodedImage:
        reading = judged(picture(seed), SIZE, settings(), "image")

        def found() -> DecodedImage:
            decoded.append(seed)
            return decode(reading, settings(), "image")

        image = cache.get(reading, found)
        assert cache.used_bytes <= 2 * BYTES
        return image

    for seed in (1, 2, 1, 3, 1, 2):
        get(seed)
    assert decoded == [1, 2, 3, 2]
    with pytest.raises(ValueError, match="read-only"):
        get(2).pixels_hw3[0, 0] = 0  # it is shared by all who ask
