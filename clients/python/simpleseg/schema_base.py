"""What requests and results of the HTTP contract share: words, units, and how fields are read."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Coordinates = Literal["normalized", "pixel"]
Output = Literal[
    "polygons",
    "bbox",
    "rle",
    "png",
    "svg",
    "geojson",
    "coco",
    "labelme",
    "label_studio",
    "yolo",
]
Status = Literal["ok", "empty", "truncated", "invalid"]
Task = Literal["region", "box", "point", "text"]
FinishReason = Literal["stop", "length", "deadline", "error"]
ScoreType = Literal[
    "expected_iou",
    "sample_agreement",
    "geometric_mean_coordinate_token_probability",
    "geometric_mean_token_probability",
]
Include = Literal["timings", "raw_text", "scores"]
DEFAULT_OUTPUTS: tuple[Output, ...] = ("polygons", "bbox")
DEFAULT_LABEL = "object"
"""The label, in other tools' formats, of what was asked for without a text."""
MAX_SEED = 2**63 - 1
MAX_SAMPLES = 16
UNION_TAG = "~"
"""First character of the tags that pydantic puts into error locations for a choice of types."""


class RequestModel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ResponseModel(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


XY = Annotated[list[float], Field(min_length=2, max_length=2)]
Outline = Annotated[list[XY], Field(min_length=3)]
XYXY = Annotated[list[float], Field(min_length=4, max_length=4)]
