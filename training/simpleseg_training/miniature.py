"""A small RefCOCO family of drawn scenes, in exactly REFER's files: to rehearse and to test."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from simpleseg_polygon.contour import region_from_mask
from simpleseg_polygon.rle import mask_to_rle
from simpleseg_training import phrases
from simpleseg_training.refcoco import SETS, SPLIT_BY, SetName
from simpleseg_training.scenes import KINDS, Rendering, render_scene

_SIZE_PX = 160
_SPLITS: dict[str, tuple[str, ...]] = {
    "unc": ("train", "train", "train", "val", "testA", "testB"),
    "google": ("train", "train", "train", "val"),
    "umd": ("train", "train", "train", "val", "test"),
    "berkeley": ("train", "train", "train", "val", "test"),
}


def write_miniature(root: Path, scenes: int = 12) -> None:
    """All four sets with every split, below ``root`` as REFER has them. Raises ValueError for
    fewer scenes than have every split."""
    if scenes < 6:
        raise ValueError("a miniature needs six scenes or more, to have every split")
    for number, name in enumerate(SETS):
        first = 2_000_000 + (number * scenes if name == "refclef" else 0)  # COCO's share pictures
        seeds = range(first, first + scenes)
        drawn = {seed: render_scene(seed, 2, 4, _SIZE_PX) for seed in seeds}
        _write_images(root, name, drawn)
        _write_set(root / name, name, drawn)


def _file_name(name: SetName, seed: int) -> str:
    return f"{seed}.jpg" if name == "refclef" else f"COCO_train2014_{seed:012d}.jpg"


def _write_images(root: Path, name: SetName, drawn: dict[int, Rendering]) -> None:
    place = "saiapr_tc-12" if name == "refclef" else "mscoco/images/train2014"
    folder = root / "images" / place
    folder.mkdir(parents=True, exist_ok=True)
    for seed, rendering in drawn.items():
        Image.fromarray(rendering.image_hw3).save(folder / _file_name(name, seed), quality=90)


def _write_set(folder: Path, name: SetName, drawn: dict[int, Rendering]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    annotations = [_annotation(name, *found) for found in _objects(drawn)]
    instances = {
        "images": [
            {"id": s, "file_name": _file_name(name, s), "height": _SIZE_PX, "width": _SIZE_PX}
            for s in drawn
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": kind} for i, kind in enumerate(KINDS, start=1)],
    }
    (folder / "instances.json").write_text(json.dumps(instances))
    for by in SPLIT_BY[name]:
        refs = _references(name, drawn, annotations, _SPLITS[by])
        # Protocol 2, since the published files are Python 2's.
        (folder / f"refs({by}).p").write_bytes(pickle.dumps(refs, protocol=2))


def _objects(drawn: dict[int, Rendering]) -> list[tuple[int, int, Rendering]]:
    return [
        (seed, i, rendering)
        for seed, rendering in drawn.items()
        for i in range(len(rendering.masks_hw))
    ]


def _annotation(name: SetName, seed: int, i: int, rendering: Rendering) -> dict[str, Any]:
    mask = rendering.masks_hw[i]
    ys, xs = np.nonzero(mask)
    left, top = int(xs.min()), int(ys.min())
    box = [left, top, int(xs.max()) + 1 - left, int(ys.max()) + 1 - top]
    # RefCLEF has lists of run-length encodings, the others polygons.
    segmentation: Sequence[Any] = [mask_to_rle(mask).to_coco()]
    if name != "refclef":
        region = region_from_mask(mask)
        segmentation = [
            [number * _SIZE_PX for point in ring for number in point] for ring in region.parts
        ]
    return {
        "id": seed * 10 + i,
        "image_id": seed,
        "category_id": KINDS.index(rendering.scene.objects[i].kind) + 1,
        "segmentation": segmentation,
        "bbox": box,
        "area": int(mask.sum()),
        "iscrowd": 0,
    }


def _references(
    name: SetName,
    drawn: dict[int, Rendering],
    annotations: Sequence[dict[str, Any]],
    splits: Sequence[str],
) -> list[dict[str, Any]]:
    refs: list[dict[str, Any]] = []
    order = list(drawn)
    for annotation, (seed, i, rendering) in zip(annotations, _objects(drawn), strict=True):
        scene = phrases.look(rendering)
        rng = np.random.default_rng((seed, i))
        said = {phrases.refer(rng, scene[i], scene) for _ in range(3)} - {None}
        if not said:
            continue
        sentences = [
            _sentence(len(refs) * 10 + n, text) for n, text in enumerate(sorted(map(str, said)))
        ]
        refs.append(
            {
                "ref_id": len(refs),
                "ann_id": annotation["id"],
                "image_id": seed,
                "category_id": annotation["category_id"],
                "file_name": f"{Path(_file_name(name, seed)).stem}_{i}.jpg",
                "split": splits[order.index(seed) % len(splits)],
                "sent_ids": [sentence["sent_id"] for sentence in sentences],
                "sentences": sentences,
            }
        )
    return refs


def _sentence(number: int, text: str) -> dict[str, Any]:
    return {"sent_id": number, "sent": text, "raw": text.capitalize(), "tokens": text.split()}
