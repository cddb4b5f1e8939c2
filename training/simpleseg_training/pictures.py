"""Pictures of data and results: contact sheet, sample images, failures, training curves.

python -m simpleseg_training.pictures contact-sheet docs/contact-sheet.png
python -m simpleseg_training.pictures samples examples/images
python -m simpleseg_training.pictures curves runs/demo/log.jsonl curves.png
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from simpleseg_polygon.codec import parse_region
from simpleseg_polygon.geometry import Region
from simpleseg_polygon.raster import mask_to_rle
from simpleseg_training.cases import SAMPLES_FILE
from simpleseg_training.evaluate import Judged
from simpleseg_training.examples import make_examples
from simpleseg_training.scenes import render_scene

_TILE_PX = 200
_CAPTION_PX = 22
_TRUTH, _ANSWER = (80, 255, 120), (255, 60, 200)

# Consecutive test scenes, not chosen by how well they go: seed -> (min, max objects).
_SAMPLE_SCENES = {seed: (1, 1) if seed < 6 else (2, 3) for seed in range(3, 10)}
_SAMPLE_PX = 512


def tile(
    image_hw3: NDArray[np.uint8], outlines: dict[tuple[int, int, int], Region], caption: str
) -> Image.Image:
    """An image with coloured outlines and a caption below it, ``_TILE_PX`` wide."""
    picture = Image.fromarray(image_hw3).resize((_TILE_PX, _TILE_PX), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    for colour, region in outlines.items():
        for ring in region.parts:
            points = [(p.x * _TILE_PX, p.y * _TILE_PX) for p in (*ring, ring[0])]
            draw.line(points, colour, 2, joint="curve")
            draw.circle(points[0], 3, colour)
    framed = Image.new("RGB", (_TILE_PX, _TILE_PX + _CAPTION_PX), "white")
    framed.paste(picture)
    font = ImageFont.load_default(12)
    ImageDraw.Draw(framed).text((4, _TILE_PX + 4), caption, "black", font)
    return framed


def sheet(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    """Tiles of one size in rows."""
    width, height = tiles[0].size
    rows = -(-len(tiles) // columns)
    page = Image.new("RGB", (columns * (width + 4), rows * (height + 4)), "white")
    for i, one in enumerate(tiles):
        page.paste(one, ((i % columns) * (width + 4), (i // columns) * (height + 4)))
    return page


def contact_sheet(count: int = 24, columns: int = 6) -> Image.Image:
    """Validation-size scenes of the train split with one phrase each and its label's outline."""
    tiles: list[Image.Image] = []
    seed = 1_000_000
    while len(tiles) < count:
        seed += 1
        rendering = render_scene(seed, 1, 1 + len(tiles) // 4, _TILE_PX)
        examples = make_examples(np.random.default_rng(seed), rendering, 1)
        if examples and examples[0].task[1] == "region":
            label = parse_region(examples[0].answer).value
            tiles.append(tile(rendering.image_hw3, {_TRUTH: label}, examples[0].phrase))
    return sheet(tiles, columns)


def failures_sheet(judged: Sequence[Judged], count: int = 12, columns: int = 6) -> Image.Image:
    """The worst answers as magenta outlines; the true area is bright, the rest is dimmed."""
    return sheet([judged_tile(one) for one in sorted(judged, key=_iou)[:count]], columns)


def _iou(one: Judged) -> float:
    return one.iou


def judged_tile(one: Judged) -> Image.Image:
    """One answer as a magenta outline over the true area."""
    image = one.case.image_hw3.copy()
    mask = one.case.mask_hw
    image[~mask] = image[~mask] // 2
    answer = parse_region(one.region_reply.text if one.region_reply else "").value
    return tile(image, {_ANSWER: answer}, f"{one.case.phrase}: {one.iou:.2f}")


def extremes(judged: Sequence[Judged], count: int) -> dict[str, list[Judged]]:
    """The best, the middle and the worst answers by IoU, ``count`` of each at most."""
    order = sorted(judged, key=_iou, reverse=True)
    middle = max(0, (len(order) - count) // 2)
    return {
        "Best": order[:count],
        "Median": order[middle : middle + count],
        "Worst": order[-count:],
    }


def write_samples(folder: Path) -> None:
    """PNG images of test scenes and their ``samples.json`` with phrases and true masks."""
    folder.mkdir(parents=True, exist_ok=True)
    samples: list[dict[str, Any]] = []
    for seed, (fewest, most) in _SAMPLE_SCENES.items():
        rendering = render_scene(seed, fewest, most, _SAMPLE_PX)
        name = f"scene-{seed:02d}.png"
        Image.fromarray(rendering.image_hw3).save(folder / name, optimize=True)
        wanted = 1 if most == 1 else 2
        asked: set[bytes] = set()
        for attempt in range(20):
            rng = np.random.default_rng((seed, attempt))
            for example in make_examples(rng, rendering, 1, {("text", "region"): 1.0}):
                if len(asked) < wanted and example.mask_hw.tobytes() not in asked:
                    asked.add(example.mask_hw.tobytes())
                    truth = mask_to_rle(example.mask_hw).to_coco()
                    samples.append({"image": name, "phrase": example.phrase, "truth_rle": truth})
    (folder / SAMPLES_FILE).write_text(json.dumps(samples, indent=1) + "\n")


def write_curves(records: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Losses and validation IoU of a pretraining's log against the images seen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = [r for r in records if "answer" in r]
    checks = [r for r in records if "evaluation" in r]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for name in ("digits", "structure", "visual", "next_number"):
        left.plot([r["images"] / 1000 for r in steps], [r[name] for r in steps], label=name)
    left.set(xlabel="thousand images", ylabel="loss", yscale="log", title="training losses")
    for data in ("demo-single", "demo-multi"):
        scores = [r["evaluation"][data]["giou"] for r in checks]
        right.plot([r["images"] / 1000 for r in checks], scores, marker="o", label=data)
    right.set(xlabel="thousand images", ylabel="mean IoU", ylim=(0, 1), title="validation, greedy")
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(out, dpi=110)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Pictures of data and results.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("contact-sheet").add_argument("out", type=Path)
    commands.add_parser("samples").add_argument("out", type=Path)
    curves = commands.add_parser("curves")
    curves.add_argument("log", type=Path)
    curves.add_argument("out", type=Path)
    options = parser.parse_args(arguments)
    if options.command == "contact-sheet":
        contact_sheet().save(options.out)
    elif options.command == "samples":
        write_samples(options.out)
    else:
        lines = options.log.read_text().splitlines()
        write_curves([json.loads(line) for line in lines], options.out)


if __name__ == "__main__":
    main()
