"""The events of a stream of ``POST /segment``."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from simpleseg.schema_base import ResponseModel
from simpleseg.schema_results import ImageInfo, Result, SegmentResponse


class EventModel(ResponseModel):
    """An event of a stream; ``type`` is written out, although it is never set."""

    @model_validator(mode="after")
    def _tell_type(self) -> Self:
        self.model_fields_set.add("type")
        return self


class Created(EventModel):
    """First event of a stream: the request was accepted."""

    type: Literal["segmentation.created"] = "segmentation.created"
    id: str
    created: int
    model: str
    image: ImageInfo


class PointsDelta(EventModel):
    """Whole vertices, to be appended to a polygon of a result, in the unit of ``coordinates``.

    A result's deltas, joined, are its final ``polygons``; none is ever taken back. With
    ``samples``, ``refine`` or ``simplify`` they come when the result is known.
    """

    type: Literal["segmentation.points.delta"] = "segmentation.points.delta"
    result: int
    polygon: int
    points: list[list[float]]


class PolygonDone(EventModel):
    """A polygon has all its vertices."""

    type: Literal["segmentation.polygon.done"] = "segmentation.polygon.done"
    result: int
    polygon: int
    n_points: int


class ResultDone(EventModel):
    """The result of one prompt, as it will be in the response; others may still be under way."""

    type: Literal["segmentation.result.done"] = "segmentation.result.done"
    result: Result


class Completed(EventModel):
    """Last event of a stream: the same object as the plain answer."""

    type: Literal["segmentation.completed"] = "segmentation.completed"
    response: SegmentResponse


StreamEvent = Annotated[
    Created | PointsDelta | PolygonDone | ResultDone | Completed, Field(discriminator="type")
]
