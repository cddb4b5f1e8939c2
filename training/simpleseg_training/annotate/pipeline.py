"""Photographs -> pairs, a contact sheet, and counts of what each filter removed."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from simpleseg_polygon.codec import format_region
from simpleseg_polygon.raster import Rle, rle_to_mask
from simpleseg_polygon.rle import mask_to_rle
from simpleseg_training.annotate.contact_sheet import write_contact_sheet
from simpleseg_training.annotate.gate import Candidate, Filter, Gate
from simpleseg_training.annotate.journal import open_journal
from simpleseg_training.annotate.parts import Describer, Detector, Segmenter
from simpleseg_training.annotate.picture import Picture, read
from simpleseg_training.contours import Contours
from simpleseg_training.recombine import Thing, recombine
from simpleseg_training.records import Record, write_records

JOURNAL, COUNTS, SHEET = "journal.jsonl", "counts.json", "contact-sheet.html"
QUARANTINED = "quarantined"
"""The fault of a picture that ends every process that opens it."""


Entry = tuple[Picture, dict[str, Any]]
"""A picture with what the journal says of it."""


@dataclass(frozen=True)
class Parts:
    """The three models of a run, and ``names``, which a run that goes on must have again."""

    detector: Detector
    segmenter: Segmenter
    describer: Describer
    names: Mapping[str, str]


@dataclass(frozen=True)
class Plan:
    """Where to, and how. ``pairs`` names the file of pairs, whose suffix is its form;
    ``pairs_per_object`` of them are drawn for an object."""

    out: Path
    pairs: str = "pairs.jsonl"
    gate: Gate = field(default_factory=Gate)
    contours: Contours = field(default_factory=lambda: Contours(max_parts=8))
    pairs_per_object: int = 4
    seed: int = 0


def annotate(
    plan: Plan,
    pictures: Sequence[Picture],
    parts: Parts,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Run or go on; the counts, which are written beside the pairs.

    An image is done once: whatever stops a run, the next one does the images that are not in the
    journal. Raises ValueError where that is of other settings.
    """
    with open_journal(plan.out / JOURNAL, settings(plan, parts.names)) as journal:
        for done, picture in enumerate(pictures, 1):
            if picture.name not in journal:
                journal.add(picture.name, annotated(plan, parts, picture))
                if progress is not None:
                    progress(done, len(pictures))
        return write(plan, [(picture, journal[picture.name]) for picture in pictures])


def settings(plan: Plan, models: Mapping[str, str]) -> dict[str, Any]:
    """What a run that goes on must have again."""
    return {**models, **asdict(plan.gate), **asdict(plan.contours)}


def annotated(plan: Plan, parts: Parts, picture: Picture) -> dict[str, Any]:
    """What the journal says of an image. Raises what the parts raise, and OSError."""
    content_and_image = read(picture)
    if content_and_image is None:
        return {"fault": "unreadable"}
    content, image = content_and_image
    digest = blake2b(content, digest_size=16).hexdigest()
    removed: Counter[Filter] = Counter()
    seen = parts.detector.detect(image)
    found = plan.gate.detections(seen, removed)
    masks = parts.segmenter.segment(image, [one.box for one in found]) if found else []
    candidates = plan.gate.candidates(found, masks, plan.contours.region_of, removed)
    kept = [candidate.detection for candidate in candidates]
    phrases = parts.describer.describe(image, kept, found) if kept else []
    objects = [_object(*pair) for pair in plan.gate.phrased(candidates, phrases, removed)]
    return {"digest": digest, "detected": len(seen), "removed": removed, "objects": objects}


def _object(candidate: Candidate, phrase: str) -> dict[str, Any]:
    detection = candidate.detection
    return {
        "phrase": phrase,
        "label": detection.label,
        "score": round(detection.score, 4),
        "box": [round(number, 4) for number in detection.box],
        "region": format_region(candidate.region),
        "mask": mask_to_rle(candidate.mask_hw).to_coco(),
    }


def write(plan: Plan, entries: Sequence[Entry]) -> dict[str, Any]:
    """The pairs of images, from what was said of each, with the counts, which are returned."""
    unlike = list(_without_copies(entries))
    count = write_records(_records(plan, unlike), plan.out / plan.pairs)
    removed: Counter[str] = sum((Counter(e.get("removed", {})) for _, e in unlike), Counter())
    faults = Counter(entry["fault"] for _, entry in entries if "fault" in entry)
    counts = {
        "images": len(entries),
        "unreadable_images": faults["unreadable"],
        "quarantined_images": faults[QUARANTINED],
        "copied_images": len(entries) - faults.total() - len(unlike),
        "detected": sum(entry["detected"] for _, entry in unlike),
        "removed": dict(sorted(removed.items())),
        "objects": sum(len(entry["objects"]) for _, entry in unlike),
        "pairs": count,
    }
    (plan.out / COUNTS).write_text(json.dumps(counts, indent=1) + "\n")
    write_contact_sheet(unlike, counts, plan.out / SHEET)
    return counts


def _without_copies(entries: Sequence[Entry]) -> Iterator[Entry]:
    """Readable images, of files with the same bytes the first."""
    digests: set[str] = set()
    for picture, entry in entries:
        if "fault" not in entry and entry["digest"] not in digests:
            digests.add(entry["digest"])
            yield picture, entry


def _records(plan: Plan, entries: Sequence[Entry]) -> Iterator[Record]:
    """Pairs depend on the seed, the image's bytes and the object alone: not on how often a run
    stopped, nor on where the image is."""
    for picture, entry in entries:
        key = blake2b(f"{plan.seed} {entry['digest']}".encode(), digest_size=8)
        for i, found in enumerate(entry["objects"]):
            rng = np.random.default_rng((int.from_bytes(key.digest()), i))
            rle = Rle.from_coco(found["mask"])
            thing = Thing(rle_to_mask(rle), plan.contours)
            made = recombine(rng, thing, [found["phrase"]], plan.pairs_per_object)
            for number, example in enumerate(made):
                yield Record(
                    image=picture.file,
                    instruction=example.instruction,
                    answer=example.answer,
                    task=example.task,
                    id=f"{key.hexdigest()}-{i}-{number}",
                    truth_rle=rle,
                )
