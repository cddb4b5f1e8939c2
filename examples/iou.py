"""Print the IoU of a ``POST /segment`` response with the shipped truth of a sample.

    curl -s http://127.0.0.1:8000/segment -F image=@examples/images/scene-04.png \\
        -F prompt='the hexagon' -F return=rle | python examples/iou.py scene-04.png 'the hexagon'
"""

import json
import sys
from pathlib import Path

from simpleseg_polygon.metrics import iou
from simpleseg_polygon.raster import Rle

SAMPLES = Path(__file__).parent / "images/samples.json"


def true_mask(image: str, phrase: str) -> Rle:
    """The truth that ``samples.json`` holds. Raises SystemExit where it has none."""
    for sample in json.loads(SAMPLES.read_text()):
        if (sample["image"], sample["phrase"]) == (image, phrase):
            return Rle.from_coco(sample["truth_rle"])
    raise SystemExit(f"no sample {image!r} with the phrase {phrase!r} in {SAMPLES.name}")


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    result = json.load(sys.stdin)["results"][0]
    if result["rle"] is None:
        raise SystemExit(f"status {result['status']}, no RLE: ask for it with return=rle")
    answer = Rle.from_coco(result["rle"])
    print(f"{result['status']}, IoU {iou(answer, true_mask(sys.argv[1], sys.argv[2])):.3f}")


if __name__ == "__main__":
    main()
