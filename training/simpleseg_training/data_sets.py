"""Evaluation data in files: the RefCOCO family, COCO's JSON, folders of masks, samples.

- ``refcoco:ROOT`` (``refcoco+``, ``refcocog``, ``refclef``): every phrase of the split. In
  ``refcocog/google:ROOT`` the name behind the stroke says who split the set.
- ``FILE.json``: COCO's instances; images lie beside it or in ``images/``. An annotation with a
  ``phrase`` is a case; the others of an image and category are one, "the CATEGORY".
- A folder with ``masks/IMAGE/PHRASE.png`` and ``images/IMAGE.*``: what is not black is the object;
  an all black mask means that the phrase is true of nothing. ``_`` stands for a space.
- A folder with ``samples.json``: a list of {image, phrase, truth_rle}.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from simpleseg_polygon.raster import Rle
from simpleseg_polygon.rle import mask_to_rle
from simpleseg_training.case import Case
from simpleseg_training.coco import image_path, mask_of_segmentation, read_instances, size_of
from simpleseg_training.refcoco import SETS, in_split, phrases_of, read_references

SAMPLES_FILE = "samples.json"


def file_cases(data: str, split: str) -> Iterator[Case]:
    """The cases in the order of the files. Raises ValueError where the data are none of these."""
    kind, _, place = data.partition(":")
    name, _, by = kind.partition("/")
    for known in SETS:
        if name == known and place:
            return _refcoco(read_references(Path(place), known, by or None), split)
    path = Path(data)
    if path.suffix == ".json" and path.is_file():
        return _coco(path)
    if (path / SAMPLES_FILE).is_file():
        return _samples(path)
    if (path / "masks").is_dir():
        return _masks(path)
    raise ValueError(
        f"no data named {data!r}: use demo-single, demo-multi, demo-hard, demo-stress:FOLDER, "
        f"refcoco:ROOT (or {', '.join(SETS[1:])}), a COCO .json, or a folder with {SAMPLES_FILE} "
        "or masks/"
    )


def _refcoco(references: Any, split: str) -> Iterator[Case]:
    for ref, phrase in phrases_of(in_split(references, split)):
        yield Case(ref.image, phrase, mask_to_rle(ref.mask()))


def _coco(path: Path) -> Iterator[Case]:
    instances = read_instances(path)
    folder = path.parent / "images" if (path.parent / "images").is_dir() else path.parent
    named: dict[tuple[int, str], list[Mapping[str, Any]]] = defaultdict(list)
    for number, annotation in instances.annotations.items():
        category = instances.categories.get(annotation["category_id"], "object")
        own = f"{number}\n{annotation['phrase']}" if "phrase" in annotation else f"\nthe {category}"
        named[annotation["image_id"], own].append(annotation)
    for (image_id, key), annotations in named.items():
        image = instances.images[image_id]
        parts = [mask_of_segmentation(a["segmentation"], size_of(image)) for a in annotations]
        truth = mask_to_rle(np.logical_or.reduce(parts))
        yield Case(image_path(folder, image), key.split("\n", 1)[1], truth)


def _masks(folder: Path) -> Iterator[Case]:
    images = {path.stem: path for path in sorted((folder / "images").iterdir())}
    for path in sorted((folder / "masks").glob("*/*.png")):
        if path.parent.name not in images:
            raise ValueError(f"{path}: no image {path.parent.name}.* in {folder / 'images'}")
        with Image.open(path) as picture:
            mask = np.asarray(picture.convert("L")) > 0
        yield Case(images[path.parent.name], path.stem.replace("_", " "), mask_to_rle(mask))


def _samples(folder: Path) -> Iterator[Case]:
    for sample in json.loads((folder / SAMPLES_FILE).read_text()):
        truth = Rle.from_coco(sample["truth_rle"])
        yield Case(folder / sample["image"], sample["phrase"], truth)
