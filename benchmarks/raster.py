"""Region -> COCO RLE: this project's rasteriser against pycocotools, OpenCV, Pillow, scikit-image.

Compared, on one region of 24 vertices: ``region_to_rle`` at 1024x1024 with the decoding in the
SimpleSeg README (``frPyObjects``, ``decode``, sums, uint8 mask), and at 8192x8192 with itself at
1024x1024 and with ``frPyObjects`` alone. Then, at both sizes, every rasteriser that is installed,
each to the same RLE: ``frPyObjects`` by itself; ``cv2.fillPoly``, ``ImageDraw.polygon`` and
``skimage.draw.polygon`` with pycocotools' ``encode``. Sides alternate, two calls each; times are
medians of the second calls, and of the first ones (``_cold``), in CPU time of the one thread that
works, so that other work on the machine counts less.

    python benchmarks/raster.py [--quick] [--json]

The last line printed with ``--json`` is one object; ``speedup_vs_reference_1024`` is higher when
better, ``time_8192_over_1024`` and ``time_vs_frpyobjects_8192`` lower. ``rasterizers`` has for each
size and side its ``ms``, ``times_ours`` and the IoU with our mask.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from provenance import provenance
from pycocotools import mask as coco

from simpleseg_polygon.geometry import ImageSize, Point, Region
from simpleseg_polygon.raster import region_to_rle

SMALL, LARGE = ImageSize(1024, 1024), ImageSize(8192, 8192)
PACKAGES = ("numpy", "pycocotools", "opencv-python-headless", "pillow", "scikit-image")
SHIFT = 4
"""Bits of a pixel that cv2.fillPoly is given coordinates in."""
Rasterizer = Callable[[Region, ImageSize], Any]


def region_with_24_vertices() -> Region:
    """A star-shaped outline about 0.8 of the image across, on the three-decimal grid."""
    rng = np.random.default_rng(0)
    angles = np.sort(rng.random(24)) * 2 * math.pi
    radii = 0.25 + 0.2 * rng.random(24)
    xy = 0.5 + np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
    return Region((tuple(Point(x, y) for x, y in xy.round(3).tolist()),))


def scaled_rings(region: Region, size: ImageSize) -> list[NDArray[np.float64]]:
    """The rings' vertices in pixels, x first."""
    return [np.array(ring) * [size.width, size.height] for ring in region.parts]


def flat_polygons(region: Region, size: ImageSize) -> list[list[float]]:
    return [ring.reshape(-1).tolist() for ring in scaled_rings(region, size)]


def reference_mask(region: Region, size: ImageSize) -> NDArray[np.uint8]:
    """The steps of the SimpleSeg README, 'Decode the polygons and masks', in their order."""
    masks = []
    for polygon in flat_polygons(region, size):
        rle = coco.frPyObjects([polygon], size.height, size.width)
        masks.append(np.sum(coco.decode(rle), axis=2, keepdims=True))
    total = np.sum(masks, axis=0).sum(axis=2)
    mask: NDArray[np.uint8] = (total > 0).astype(np.uint8)
    return mask


def by_pycocotools(region: Region, size: ImageSize) -> Any:
    return coco.merge(coco.frPyObjects(flat_polygons(region, size), size.height, size.width))


def by_opencv(region: Region, size: ImageSize) -> Any:
    # A pixel's centre has whole coordinates there, and halves here.
    rings = [
        ((ring - 0.5) * 2**SHIFT).round().astype(np.int32) for ring in scaled_rings(region, size)
    ]
    mask = np.zeros(size, np.uint8)
    for ring in rings:  # together they would be filled by parity
        cv2.fillPoly(mask, [ring], (1,), shift=SHIFT)
    return coco.encode(np.asfortranarray(mask))


def by_pillow(region: Region, size: ImageSize) -> Any:
    image = Image.new("L", (size.width, size.height))
    draw = ImageDraw.Draw(image)
    for ring in scaled_rings(region, size):
        draw.polygon((ring - 0.5).reshape(-1).tolist(), fill=1)
    return coco.encode(np.asfortranarray(image))


def by_scikit_image(region: Region, size: ImageSize) -> Any:
    from skimage import draw

    fill: Any = draw.polygon
    mask = np.zeros(size, np.uint8)
    for ring in scaled_rings(region, size):
        mask[fill(ring[:, 1] - 0.5, ring[:, 0] - 0.5, size)] = 1
    return coco.encode(np.asfortranarray(mask))


def rasterizers() -> dict[str, Rasterizer]:
    """Those that are installed, ours first."""
    found: dict[str, Rasterizer] = {
        "ours": lambda region, size: region_to_rle(region, size).to_coco(),
        "pycocotools": by_pycocotools,
        "cv2.fillPoly": by_opencv,
        "PIL.ImageDraw": by_pillow,
    }
    if find_spec("skimage"):
        found["skimage.draw.polygon"] = by_scikit_image
    return found


def median_times_ms(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of one call of each side; every round calls each side twice.

    ``name`` is the second call, in the caches and memory that its own kind leaves behind;
    ``name_cold`` is the first, right after the other side, whose large arrays have emptied them.
    """
    times: dict[str, list[float]] = {f"{name}{end}": [] for name in sides for end in ("_cold", "")}
    for _ in range(rounds):
        for name, call in sides.items():
            for end in ("_cold", ""):
                started = time.thread_time()
                call()
                times[name + end].append(1000 * (time.thread_time() - started))
    return {name: statistics.median(values) for name, values in times.items()}


def against_reference(region: Region, rounds: int) -> dict[str, Any]:
    times = median_times_ms(
        {
            "ours_1024": lambda: region_to_rle(region, SMALL),
            "reference_1024": lambda: reference_mask(region, SMALL),
        },
        rounds,
    )
    polygons = flat_polygons(region, LARGE)
    times |= median_times_ms(
        {
            "ours_1024_again": lambda: region_to_rle(region, SMALL),
            "ours_8192": lambda: region_to_rle(region, LARGE),
            "frpyobjects_8192": lambda: coco.frPyObjects(polygons, LARGE.height, LARGE.width),
        },
        rounds,
    )
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
    }


def against_all(region: Region, size: ImageSize, rounds: int) -> dict[str, Any]:
    """Every rasteriser at one size."""
    known = rasterizers()
    times = median_times_ms(
        {name: _bound(call, region, size) for name, call in known.items()}, rounds
    )
    ours = known["ours"](region, size)
    return {
        name: {
            "ms": round(times[name], 3),
            "times_ours": round(times[name] / times["ours"], 1),
            "iou_with_ours": round(float(coco.iou([call(region, size)], [ours], [0])[0, 0]), 4),
        }
        for name, call in known.items()
    }


def _bound(call: Rasterizer, region: Region, size: ImageSize) -> Callable[[], object]:
    return lambda: call(region, size)


def measure(rounds: int) -> dict[str, Any]:
    cv2.setNumThreads(1)
    region = region_with_24_vertices()
    return against_reference(region, rounds) | {
        "rasterizers": {
            f"{size.height}x{size.width}": against_all(region, size, max(1, rounds // share))
            for size, share in ((SMALL, 4), (LARGE, 100))
        },
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object on one line")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a few seconds")
    arguments = parser.parse_args()
    said = provenance(*PACKAGES, model=None, inputs="one star-shaped region of 24 vertices")
    results = said | measure(rounds=40 if arguments.quick else 400)
    print(json.dumps(results, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
