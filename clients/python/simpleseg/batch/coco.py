"""The answers of a batch as a COCO data set, in the order in which they were asked."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from simpleseg.batch import BatchError
from simpleseg.batch.journal import Journal, write_atomically
from simpleseg.batch.source import Entry, Source
from simpleseg.formats import coco_annotation, coco_dataset
from simpleseg.formats.coco import CocoAnnotation
from simpleseg.results import region_of
from simpleseg.schema import DEFAULT_LABEL, Result, SegmentResponse
from simpleseg_polygon.geometry import ImageSize, Point, Region


@dataclass
class _DataSet:
    images: dict[str, int] = field(default_factory=dict[str, int])
    sizes: list[ImageSize] = field(default_factory=list[ImageSize])
    categories: dict[str, int] = field(default_factory=dict[str, int])
    annotations: list[CocoAnnotation] = field(default_factory=list[CocoAnnotation])

    def add(self, entry: Entry, response: SegmentResponse) -> None:
        size = ImageSize(response.image.height, response.image.width)
        image_id = self.images.setdefault(entry.name, len(self.images) + 1)
        if image_id > len(self.sizes):
            self.sizes.append(size)
        for result in response.results:
            label = result.prompt or DEFAULT_LABEL
            category_id = self.categories.setdefault(label, len(self.categories) + 1)
            region = _normalized(result, entry, size)
            if not region.is_empty:
                self.annotations.append(
                    coco_annotation(
                        region,
                        size,
                        image_id=image_id,
                        category_id=category_id,
                        score=result.score,
                    )
                )


def check_for_coco(source: Source) -> None:
    """Raises BatchError for a request whose answer will not say where its region is."""
    for entry in source.entries():
        outputs = entry.fields.get("return")
        if entry.fields.get("task", "region") != "region":
            raise BatchError(f"{entry.custom_id}: a COCO data set is made of regions alone")
        if outputs is not None and "polygons" not in outputs:
            raise BatchError(f'{entry.custom_id}: a COCO data set needs "polygons" in return')


def write_coco(path: Path, source: Source, journal: Journal) -> None:
    """One image for each name, one annotation for each region; failed items are left out.

    Categories are the phrases, numbered as they come. The file is replaced as a whole.
    """
    found = _DataSet()
    for entry, response in _answers(source, journal):
        found.add(entry, response)
    categories = {number: name for name, number in found.categories.items()}
    document = coco_dataset(list(found.images), found.sizes, found.annotations, categories)
    write_atomically(path, json.dumps(document).encode())


def _answers(source: Source, journal: Journal) -> Iterator[tuple[Entry, SegmentResponse]]:
    for entry in source.entries():
        mark = journal.marks.get(entry.custom_id)
        if mark is not None and not mark.failed:
            body = journal.line(entry.custom_id)["response"]["body"]
            yield entry, SegmentResponse.model_validate(body)


def _normalized(result: Result, entry: Entry, size: ImageSize) -> Region:
    region = region_of(result)
    if entry.fields.get("coordinates") != "pixel":
        return region
    return Region(
        tuple(
            tuple(Point(point.x / size.width, point.y / size.height) for point in ring)
            for ring in region.parts
        )
    )
