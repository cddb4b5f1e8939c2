"""Linear laws of time and memory, fitted to some measurements and checked against others."""

import io
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from simpleseg_polygon.geometry import ImageSize, Point, Region
from simpleseg_polygon.raster import region_to_rle
from simpleseg_server.config import Settings
from simpleseg_server.images import decode, judged
from simpleseg_server.pixels import EngineSize

SPAWN = multiprocessing.get_context("spawn")
WANTED = EngineSize(max_pixels=1280 * 28 * 28)
"""What a checkpoint of Qwen2.5-VL is given at most: 1280 visual tokens of 28 x 28 pixels."""

Row = tuple[tuple[float, ...], float]
"""Features and what was measured."""


@dataclass(frozen=True)
class Law:
    """``value = sum(coefficient * feature)``, of least squares of the relative error."""

    names: tuple[str, ...]
    coefficients: tuple[float, ...]

    @classmethod
    def fit(cls, names: Sequence[str], rows: Sequence[Row]) -> "Law":
        """
        >>> Law.fit(["one", "x"], [((1, 1), 3.0), ((1, 2), 5.0), ((1, 3), 7.0)]).of((1, 10))
        21.0
        """
        features = np.array([row[0] for row in rows], float)
        values = np.array([row[1] for row in rows])
        weighted = features / values[:, None]
        found = np.linalg.lstsq(weighted, np.ones(len(rows)), rcond=None)[0]
        return cls(tuple(names), tuple(found.tolist()))

    def of(self, features: Sequence[float]) -> float:
        terms = zip(self.coefficients, features, strict=True)
        return round(sum(c * f for c, f in terms), 6)

    def report(self, fitted: Sequence[Row], held_out: Sequence[Row]) -> dict[str, Any]:
        """The coefficients and how far the law is off, as shares of what was measured."""
        return {
            "law": dict(
                zip(self.names, (float(f"{c:.4g}") for c in self.coefficients), strict=True)
            ),
            "fitted": [self._point(row) for row in fitted],
            "held_out": [self._point(row) for row in held_out],
            "mean_error_fitted": self._mean_error(fitted),
            "mean_error_held_out": self._mean_error(held_out),
        }

    def _point(self, row: Row) -> dict[str, Any]:
        features = dict(zip(self.names, row[0], strict=True))
        return {**features, "measured": round(row[1], 4), "predicted": round(self.of(row[0]), 4)}

    def _mean_error(self, rows: Sequence[Row]) -> float:
        return round(statistics.fmean(abs(self.of(f) / value - 1) for f, value in rows), 3)


def checked(
    names: Sequence[str], rows: Sequence[Row], is_held_out: Callable[[int], bool]
) -> dict[str, Any]:
    """Fit on the rows whose numbers are not held out, and check on the others."""
    fitted = [row for number, row in enumerate(rows) if not is_held_out(number)]
    held_out = [row for number, row in enumerate(rows) if is_held_out(number)]
    return Law.fit(names, fitted).report(fitted, held_out)


def every_third(number: int) -> bool:
    return number % 3 == 1


def photograph(height: int, width: int) -> bytes:
    """A JPEG with about as much detail as a photograph: smooth shapes and a little noise."""
    rng = np.random.default_rng(height * width)
    coarse = Image.fromarray(rng.integers(0, 255, (height // 16, width // 16, 3), np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noisy = (pixels + rng.integers(-6, 7, pixels.shape, np.int16)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def image_sizes(largest: int) -> list[tuple[int, int]]:
    """Of four by three, 0.08 to ``largest`` times that many megapixels."""
    sides = [320, 480, 640, 960, 1280, 1920, 2560, 3200, 4000]
    return [(side * 3 // 4, side) for side in sides if side <= largest]


def decoding(largest: int, repeat: int) -> dict[str, Any]:
    """Milliseconds of one core for a JPEG of so many megapixels; what has more than about one is
    scaled down."""
    rows: list[Row] = []
    for height, width in image_sizes(largest):
        data = photograph(height, width)
        times = [_cpu_ms(partial(_decode, data)) for _ in range(repeat)]
        megapixels = height * width / 1e6
        scaled = megapixels if height * width > WANTED.max_pixels else 0.0
        rows.append(((1.0, megapixels, scaled), statistics.median(times)))
    return checked(["ms", "ms_per_megapixel", "ms_per_megapixel_scaled"], rows, every_third)


def memory(largest: int) -> dict[str, Any]:
    """MiB that decoding such a JPEG takes at most, in a process that has decoded a small one."""
    rows: list[Row] = []
    for height, width in image_sizes(largest)[2:]:
        with SPAWN.Pool(1) as pool:
            mib = pool.apply(_decoding_mib, (photograph(height, width),))
        rows.append(((1.0, height * width / 1e6), mib))
    return checked(["mib", "mib_per_megapixel"], rows, every_third)


def _decode(data: bytes) -> None:
    settings = Settings()
    decode(judged(data, WANTED, settings, "image"), settings, "image")


def _decoding_mib(data: bytes) -> float:
    _decode(photograph(96, 128))
    before = _largest_mib()
    _decode(data)
    return max(_largest_mib() - before, 0.01)


def _largest_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def rasterizing(repeat: int) -> dict[str, Any]:
    """Microseconds of one core for the RLE of a region, by its vertices and its rows of pixels."""
    rows: list[Row] = []
    for side in (256, 1024, 4096):
        for vertices in (4, 12, 24, 48, 96, 192):
            region = star(vertices)
            size = ImageSize(side, side)
            times = [_cpu_ms(partial(region_to_rle, region, size)) for _ in range(repeat)]
            features = (1.0, float(vertices), perimeter(region) * side / 1000)
            rows.append((features, statistics.median(times) * 1e3))
    return checked(["us", "us_per_vertex", "us_per_1000_px_of_outline"], rows, every_third)


def star(vertices: int) -> Region:
    rng = np.random.default_rng(vertices)
    angles = np.sort(rng.random(vertices)) * 2 * np.pi
    radii = 0.25 + 0.2 * rng.random(vertices)
    xy = 0.5 + np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
    return Region((tuple(Point(x, y) for x, y in xy.round(3).tolist()),))


def perimeter(region: Region) -> float:
    """Of a region's outline, in sides of the image."""
    rings = [np.array(ring) for ring in region.parts]
    return float(sum(np.linalg.norm(ring - np.roll(ring, 1, 0), axis=1).sum() for ring in rings))


def _cpu_ms(call: Callable[[], object]) -> float:
    """Of this thread alone, so that other work on the machine counts less."""
    began = time.thread_time()
    call()
    return (time.thread_time() - began) * 1e3
