"""Published results on the RefCOCO family, to print a model's own beside.

The numbers are those of SimpleSeg's README (https://github.com/songtianhui/SimpleSeg, January 2026;
tables 1 and 2 of arXiv 2601.19228), in per cent. Other models' are as that README quotes them.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from simpleseg_training.refcoco import SetName

Column = tuple[SetName, str]
"""A set, split as its authors' papers do (unc, unc, umd), and its split."""

COLUMNS: tuple[Column, ...] = (
    ("refcoco", "val"),
    ("refcoco", "testA"),
    ("refcoco", "testB"),
    ("refcoco+", "val"),
    ("refcoco+", "testA"),
    ("refcoco+", "testB"),
    ("refcocog", "val"),
    ("refcocog", "test"),
)
Table = Literal["res", "rec"]
METRIC: dict[Table, str] = {"res": "ciou", "rec": "box_acc50"}
TITLE: dict[Table, str] = {
    "res": "Referring segmentation, cIoU in %",
    "rec": "Referring comprehension, boxes with IoU of at least 0.5 in %",
}
SOURCE = "published: as quoted by the README of SimpleSeg (arXiv 2601.19228)"

PUBLISHED: dict[Table, dict[str, tuple[float, ...]]] = {
    "res": {
        "NEXT-Chat": (74.7, 78.9, 69.5, 65.1, 71.9, 56.7, 67.0, 67.0),
        "LISA": (74.9, 79.1, 72.3, 65.1, 70.8, 58.1, 67.9, 70.6),
        "PixelLM": (73.0, 76.5, 68.2, 66.3, 71.7, 58.3, 69.3, 70.5),
        "AnyRef": (76.9, 79.9, 74.2, 70.3, 73.5, 61.8, 70.0, 70.7),
        "GSVA": (77.2, 78.9, 73.5, 65.9, 69.6, 59.8, 72.7, 73.3),
        "LaSagNA": (76.8, 78.7, 73.8, 66.4, 70.6, 60.1, 70.6, 71.9),
        "Groundhog": (78.5, 79.9, 75.7, 70.5, 75.0, 64.9, 74.1, 74.6),
        "Text4Seg with SAM": (79.2, 81.7, 75.6, 72.8, 77.9, 66.5, 74.0, 75.3),
        "Text4Seg": (74.7, 77.4, 71.6, 68.5, 73.6, 62.9, 70.7, 71.6),
        "SimpleSeg-Qwen2.5-VL": (80.9, 77.8, 75.2, 72.4, 77.3, 66.1, 73.3, 74.1),
        "SimpleSeg-Kimi-VL": (80.0, 80.6, 76.2, 70.4, 76.2, 67.1, 72.8, 74.7),
    },
    "rec": {
        "LISA": (85.4, 88.8, 82.6, 74.2, 79.5, 68.4, 79.3, 80.4),
        "GSVA": (86.3, 89.2, 83.8, 72.8, 78.8, 68.0, 81.6, 81.8),
        "NEXT-Chat": (85.5, 90.0, 77.9, 77.2, 84.5, 68.0, 80.1, 79.8),
        "PixelLM": (89.8, 92.2, 86.4, 83.2, 87.0, 78.9, 84.6, 86.0),
        "Text4Seg with SAM": (90.3, 93.4, 87.5, 85.2, 89.9, 79.5, 85.4, 85.4),
        "Text4Seg": (88.3, 91.4, 85.8, 83.5, 88.2, 77.9, 82.4, 82.5),
        "SimpleSeg-Qwen2.5-VL": (90.2, 92.9, 86.1, 84.6, 90.5, 79.0, 84.9, 85.6),
        "SimpleSeg-Kimi-VL": (91.3, 92.1, 87.1, 82.6, 88.3, 79.3, 84.6, 86.3),
    },
}
"""Model -> a number for each of ``COLUMNS``."""


FAMILY = "refcoco-family"


def parts(data: str, split: str) -> list[tuple[str, str]]:
    """The data sets and splits of an evaluation: ``refcoco-family:ROOT`` is every column of the
    tables, whatever ``split`` says; all other data are themselves."""
    kind, _, root = data.partition(":")
    if kind == FAMILY and root:
        return [(f"{name}:{root}", part) for name, part in COLUMNS]
    return [(data, split)]


def column_of(data: str, split: str) -> Column | None:
    """The column that an evaluation belongs to, if to any."""
    kind = data.partition(":")[0]
    return next((column for column in COLUMNS if column == (kind, split)), None)


def comparison(metrics: Mapping[Column, Mapping[str, float]], name: str) -> str:
    """Both tables in Markdown, with the columns that were measured, and a row ``name`` of what
    ``evaluate.metrics_of`` found; a table whose metric was not measured is left out."""
    columns = [column for column in COLUMNS if column in metrics]
    tables = [
        _table(table, columns, [100 * metrics[column][METRIC[table]] for column in columns], name)
        for table in METRIC
        if columns and all(METRIC[table] in metrics[column] for column in columns)
    ]
    return "\n\n".join(tables)


def _table(table: Table, columns: Sequence[Column], ours: Sequence[float], name: str) -> str:
    places = [COLUMNS.index(column) for column in columns]
    rows = {model: [found[i] for i in places] for model, found in PUBLISHED[table].items()}
    heads = [" ".join(column) for column in columns] + ["mean"] * (len(columns) > 1)
    lines = [
        f"| {TITLE[table]} | " + " | ".join(heads) + " |",
        "|---" + "|---:" * len(heads) + "|",
        *(_row(model, found) for model, found in rows.items()),
        _row(f"**{name}**", ours),
    ]
    return "\n".join(lines)


def _row(model: str, found: Sequence[float]) -> str:
    mean = sum(found) / len(found) + 1e-6  # so that 68.85 becomes 68.9, as in the published mean
    cells = [*found, mean] if len(found) > 1 else found
    return f"| {model} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |"
