"""Region -> COCO RLE: this project's rasteriser against pycocotools.

Compared, on one region of 24 vertices: ``region_to_rle`` at 1024x1024 with the decoding in the
SimpleSeg README (``frPyObjects``, ``decode``, sums, uint8 mask), and at 8192x8192 with itself at
1024x1024 and with ``frPyObjects`` alone. Sides alternate, two calls each; times are medians of the
second calls, and of the first ones (``_cold``).

    python benchmarks/raster.py [--quick] [--json]

The last line printed with ``--json`` is one object; ``speedup_vs_reference_1024`` is higher when
better, ``time_8192_over_1024`` and ``time_vs_frpyobjects_8192`` lower.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from hardware import hardware
from numpy.typing import NDArray
from pycocotools import mask as coco

from simpleseg_polygon.geometry import ImageSize, Point, Region
from simpleseg_polygon.raster import region_to_rle

SMALL, LARGE = ImageSize(1024, 1024), ImageSize(8192, 8192)


def region_with_24_vertices() -> Region:
    """A star-shaped outline about 0.8 of the image across, on the three-decimal grid."""
    rng = np.random.default_rng(0)
    angles = np.sort(rng.random(24)) * 2 * math.pi
    radii = 0.25 + 0.2 * rng.random(24)
    xy = 0.5 + np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
    return Region((tuple(Point(x, y) for x, y in xy.round(3).tolist()),))


def flat_polygons(region: Region, size: ImageSize) -> list[list[float]]:
    scale = np.array([size.width, size.height])
    return [(np.array(ring) * scale).reshape(-1).tolist() for ring in region.parts]


def reference_mask(region: Region, size: ImageSize) -> NDArray[np.uint8]:
    """The steps of the SimpleSeg README, 'Decode the polygons and masks', in their order."""
    masks = []
    for polygon in flat_polygons(region, size):
        rle = coco.frPyObjects([polygon], size.height, size.width)
        masks.append(np.sum(coco.decode(rle), axis=2, keepdims=True))
    total = np.sum(masks, axis=0).sum(axis=2)
    mask: NDArray[np.uint8] = (total > 0).astype(np.uint8)
    return mask


def median_times_ms(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of one call of each side; every round calls each side twice.

    ``name`` is the second call, in the caches and memory that its own kind leaves behind;
    ``name_cold`` is the first, right after the other side, whose large arrays have emptied them.
    """
    times: dict[str, list[float]] = {f"{name}{end}": [] for name in sides for end in ("_cold", "")}
    for _ in range(rounds):
        for name, call in sides.items():
            for end in ("_cold", ""):
                started = time.perf_counter()
                call()
                times[name + end].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in times.items()}


def measure(rounds: int) -> dict[str, Any]:
    region = region_with_24_vertices()
    small = median_times_ms(
        {
            "ours_1024": lambda: region_to_rle(region, SMALL),
            "reference_1024": lambda: reference_mask(region, SMALL),
        },
        rounds,
    )
    polygons = flat_polygons(region, LARGE)
    large = median_times_ms(
        {
            "ours_1024_again": lambda: region_to_rle(region, SMALL),
            "ours_8192": lambda: region_to_rle(region, LARGE),
            "frpyobjects_8192": lambda: coco.frPyObjects(polygons, LARGE.height, LARGE.width),
        },
        rounds,
    )
    times = small | large
    ours = coco.decode(region_to_rle(region, SMALL).to_coco())
    theirs = reference_mask(region, SMALL)
    return {
        "speedup_vs_reference_1024": round(times["reference_1024"] / times["ours_1024"], 1),
        "speedup_vs_reference_1024_cold": round(
            times["reference_1024_cold"] / times["ours_1024_cold"], 1
        ),
        "time_8192_over_1024": round(times["ours_8192"] / times["ours_1024_again"], 2),
        "time_vs_frpyobjects_8192": round(times["ours_8192"] / times["frpyobjects_8192"], 2),
        "iou_with_reference_1024": round(float((ours & theirs).sum() / (ours | theirs).sum()), 4),
        "median_ms": {name: round(value, 3) for name, value in times.items()},
        "rounds": rounds,
        "hardware": hardware("numpy", "pycocotools"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object on one line")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a few seconds")
    arguments = parser.parse_args()
    results = measure(rounds=50 if arguments.quick else 400)
    print(json.dumps(results, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
