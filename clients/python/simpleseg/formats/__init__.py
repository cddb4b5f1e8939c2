"""Regions in the formats of other tools; each module is one format and imports nothing heavy.

Every converter takes a ``Region`` and gives JSON-able values or text; those for libraries give the
library's own objects, and import it when they are called. Formats that fill outlines by
the even-odd rule or forbid overlap get the region's area as outlines that neither cross nor overlap
(``rings``); SVG gets the parts as they are.
"""

from simpleseg.formats.coco import coco_annotation, coco_dataset
from simpleseg.formats.fiftyone import fiftyone_detection, fiftyone_polyline
from simpleseg.formats.geojson import geojson_multipolygon
from simpleseg.formats.label_studio import label_studio_results
from simpleseg.formats.labelme import labelme_document, labelme_shapes
from simpleseg.formats.supervision import supervision_detections
from simpleseg.formats.svg import svg_document
from simpleseg.formats.yolo import yolo_line

__all__ = [
    "coco_annotation",
    "coco_dataset",
    "fiftyone_detection",
    "fiftyone_polyline",
    "geojson_multipolygon",
    "label_studio_results",
    "labelme_document",
    "labelme_shapes",
    "supervision_detections",
    "svg_document",
    "yolo_line",
]
