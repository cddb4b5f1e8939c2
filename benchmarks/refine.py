"""Does a second look help? The shipped model on held-out scenes, drawn larger than it takes.

    python benchmarks/refine.py [--quick] [--json] [--limit 100] [--size 512]

Each question is asked with ``refine`` and without. The last line printed with ``--json`` is one
object: machine, mean IoU of both, how many answers were replaced (``refined``), how many of these
came closer to the truth (``better``), and the mean IoU of these before and after.
"""

import argparse
import asyncio
import json
from typing import Any

import numpy as np
from provenance import provenance

from simpleseg.async_client import AsyncSimpleSeg
from simpleseg.cli_support import EngineName, connection
from simpleseg.results import region_of
from simpleseg_polygon.geometry import ImageSize
from simpleseg_polygon.metrics import iou
from simpleseg_polygon.raster import region_to_mask
from simpleseg_training.cases import Case, load_cases

TIMEOUT_S = 120.0


async def judged(client: AsyncSimpleSeg, case: Case, is_second: bool) -> tuple[float, bool]:
    """The answer's IoU, and whether it is that of a second look."""
    response = await client.respond(
        case.image_hw3, case.phrase, refine=is_second, timeout=TIMEOUT_S
    )
    region = region_of(response.results[0])
    mask = region_to_mask(region, ImageSize(*case.mask_hw.shape))
    was_kept = any(warning.code == "not_refined" for warning in response.warnings)
    return iou(mask, case.mask_hw), is_second and not was_kept and len(region.parts) > 0


async def measure(limit: int, size_px: int) -> dict[str, Any]:
    cases = load_cases("demo-multi", "test", limit, size_px)
    async with connection(None, None, EngineName.embedded) as client:
        first = [(await judged(client, case, False))[0] for case in cases]
        both = [await judged(client, case, True) for case in cases]
    second = [value for value, _ in both]
    changed = [(a, b) for a, (b, is_new) in zip(first, both, strict=True) if is_new and a != b]
    before, after = np.mean(changed, axis=0) if changed else (0.0, 0.0)
    return {
        "cases": len(cases),
        "size_px": size_px,
        "iou_first": round(float(np.mean(first)), 4),
        "iou_refined": round(float(np.mean(second)), 4),
        "refined": len(changed),
        "better": sum(b > a for a, b in changed),
        "refined_iou_before": round(float(before), 4),
        "refined_iou_after": round(float(after), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Does a second look help?")
    parser.add_argument("--quick", action="store_true", help="10 cases")
    parser.add_argument("--json", action="store_true", help="print one JSON object, last")
    parser.add_argument("--limit", type=int, default=100, help="cases")
    parser.add_argument("--size", type=int, default=512, help="the scenes' side in pixels")
    options = parser.parse_args()
    inputs = f"demo-multi test, {options.size} px"
    said = provenance("torch", "transformers", model="simpleseg-demo", inputs=inputs)
    result = asyncio.run(measure(10 if options.quick else options.limit, options.size))
    if not options.json:
        print("\n".join(f"{name:<20} {value}" for name, value in result.items()))
        return
    print(json.dumps({**said, **result}))


if __name__ == "__main__":
    main()
