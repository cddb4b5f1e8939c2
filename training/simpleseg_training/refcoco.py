"""RefCOCO, RefCOCO+, RefCOCOg and RefCLEF as REFER publishes them
(https://github.com/lichengunc/refer): ``ROOT/<set>/refs(<split by>).p`` and ``instances.json``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from simpleseg_polygon.geometry import ImageSize
from simpleseg_training.coco import image_path, mask_of_segmentation, read_instances, size_of
from simpleseg_training.safe_pickle import load_plain

SetName = Literal["refcoco", "refcoco+", "refcocog", "refclef"]
SETS: tuple[SetName, ...] = get_args(SetName)
SPLIT_BY: dict[SetName, tuple[str, ...]] = {
    "refcoco": ("unc", "google"),
    "refcoco+": ("unc",),
    "refcocog": ("umd", "google"),
    "refclef": ("unc", "berkeley"),
}
"""Who split a set; the first is used where none is named."""
_HELD_OUT = ("val", "test")
_IMAGE_FOLDERS = {
    "refclef": ("images/saiapr_tc-12", "saiapr_tc-12"),
    "": ("images/mscoco/images/train2014", "images/train2014", "train2014"),
}
WHERE = (
    "REFER's annotations (refcoco.zip, refcoco+.zip, refcocog.zip, refclef.zip) are linked from "
    "https://github.com/lichengunc/refer, images of the first three are COCO's "
    "http://images.cocodataset.org/zips/train2014.zip, of RefCLEF SAIAPR TC-12; "
    "`simpleseg data miniature FOLDER` makes a small set in the same form"
)


@dataclass(frozen=True)
class Reference:
    """One object of an image and the phrases that people named it by."""

    id: str
    image: Path
    image_id: int
    size: ImageSize
    split: str
    phrases: tuple[str, ...]
    category: str
    segmentation: Any
    """As in the file; ``mask()`` reads it."""

    def mask(self) -> NDArray[np.bool_]:
        return mask_of_segmentation(self.segmentation, self.size)


def read_references(
    root: Path, name: SetName, split_by: str | None = None, images: Path | None = None
) -> list[Reference]:
    """All references of a set, in the order of its file.

    ``images`` is the folder that holds its pictures; without it the places are tried where REFER
    has them below ``root``. Raises ValueError where files are missing (and says where they are to
    be had), or are not what they should be.
    """
    by = split_by or SPLIT_BY[name][0]
    if by not in SPLIT_BY[name]:
        raise ValueError(f"{name} is split by {' or '.join(SPLIT_BY[name])}, not {by!r}")
    files = root / name / f"refs({by}).p", root / name / "instances.json"
    for file in files:
        if not file.is_file():
            raise ValueError(f"no {file}: {WHERE}")
    folder = images or _image_folder(root, name)
    instances = read_instances(files[1])
    prefix = f"{name.replace('+', 'plus')}-{by}"
    try:
        return [
            _reference(ref, prefix, folder, instances.images, instances.annotations, instances)
            for ref in load_plain(files[0])
        ]
    except (KeyError, TypeError, IndexError) as error:
        found = f"{type(error).__name__}: {error}"
        raise ValueError(f"{files[0]}: not REFER's references ({found})") from error


def _image_folder(root: Path, name: SetName) -> Path:
    tried = [root / place for place in _IMAGE_FOLDERS.get(name, _IMAGE_FOLDERS[""])]
    for folder in tried:
        if folder.is_dir():
            return folder
    raise ValueError(f"no folder {tried[0]} with the images of {name}: {WHERE}")


def _reference(ref: Any, prefix: str, folder: Path, *index: Any) -> Reference:
    images, annotations, instances = index
    image, annotation = images[ref["image_id"]], annotations[ref["ann_id"]]
    return Reference(
        id=f"{prefix}-{ref['ref_id']}",
        image=image_path(folder, image),
        image_id=ref["image_id"],
        size=size_of(image),
        split=ref["split"],
        phrases=tuple(sentence["sent"].strip() for sentence in ref["sentences"]),
        category=instances.categories.get(ref["category_id"], ""),
        segmentation=annotation["segmentation"],
    )


def in_split(references: Sequence[Reference], split: str) -> list[Reference]:
    """The references of ``train``, ``val``, ``test``, ``testA``, ``testB`` or ``testC``.

    As in REFER, ``testA`` takes RefCLEF's ``testAB`` too, and ``test`` every one of them. Raises
    ValueError for a split that the set has not.
    """
    found = [ref for ref in references if _belongs(ref.split, split)]
    if not found:
        there = ", ".join(sorted({ref.split for ref in references}))
        raise ValueError(f"no split {split!r} in this set: it has {there}")
    return found


def _belongs(own: str, wanted: str) -> bool:
    if wanted == "test":
        return own.startswith("test")
    if wanted in ("testA", "testB", "testC"):
        return own.startswith("test") and wanted[-1] in own[4:]
    return own == wanted


def held_out_images(references: Sequence[Reference]) -> set[Path]:
    """Pictures that a validation or test split shows. The COCO sets share pictures: one that is in
    RefCOCO's train split may be in RefCOCOg's test split."""
    return {ref.image for ref in references if ref.split.startswith(_HELD_OUT)}


def phrases_of(references: Sequence[Reference]) -> Iterator[tuple[Reference, str]]:
    """Every phrase with its reference; blank ones are left out."""
    for ref in references:
        for phrase in ref.phrases:
            if phrase:
                yield ref, phrase
