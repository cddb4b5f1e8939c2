"""X-AnyLabeling-Server's ``GET /v1/models`` and ``POST /v1/predict``, for X-AnyLabeling's model
"Remote-Server".

``/v1/models`` is OpenAI's too; X-AnyLabeling always sends a header ``Token``, be it empty.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.datastructures import Headers
from starlette.routing import Match
from starlette.types import Scope

from simpleseg.schema import ImageInfo, RequestModel, Result, SegmentResponse
from simpleseg_polygon.geometry import ImageSize, Point, Region, Ring
from simpleseg_polygon.simplify import simplify_region
from simpleseg_server.routes.compat.asking import Question, admitted, answered, checked, unsupported
from simpleseg_server.services import services_of

router = APIRouter(include_in_schema=False)
_UNNAMED = "AUTOLABEL_OBJECT"
"""The label for which X-AnyLabeling asks the person."""
_FINENESS = 0.001

_WIDGETS: Sequence[dict[str, Any]] = (
    {"name": "edit_text", "value": None, "placeholder": "the left dog, the red car"},
    {"name": "button_send", "value": None},
    {"name": "button_add_point", "value": None},
    {"name": "button_add_rect", "value": None},
    {"name": "button_run_rect", "value": None},
    {"name": "button_clear", "value": None},
    {"name": "button_finish_object", "value": None},
    {"name": "edit_conf", "value": 0.0},
    {"name": "mask_fineness_slider", "value": 10},
    {"name": "mask_fineness_value_label", "value": None},
    {"name": "toggle_preserve_existing_annotations", "value": False},
)
"""What X-AnyLabeling shows for our models: what a request may hold, and no more."""


class Mark(RequestModel):
    """A place in pixels that the person marked; ``label`` 0 is not on the object."""

    type: Literal["point", "rectangle"]
    data: Annotated[list[float], Field(min_length=2, max_length=4)]
    label: int = 1

    def item(self, index: int) -> dict[str, list[float]]:
        """As a prompt of ``POST /segment``. Raises ApiError for what is not served."""
        if self.label != 1:
            raise unsupported(
                "only places on the object are served", f"params.marks[{index}].label"
            )
        return {"point" if self.type == "point" else "box": self.data}


class Params(RequestModel):
    """``iou_threshold`` would choose among several regions of one phrase; there is one at most."""

    text_prompt: str = ""
    marks: list[Mark] = []
    conf_threshold: float = 0.0
    iou_threshold: float = 0.0
    epsilon_factor: Annotated[float, Field(ge=0, le=1)] = _FINENESS


class PredictRequest(RequestModel):
    model: str
    image: str
    params: Params = Params()

    def question(self) -> Question:
        """Raises ApiError."""
        phrases = dict.fromkeys(filter(None, map(str.strip, self.params.text_prompt.split(","))))
        items = [mark.item(index) for index, mark in enumerate(self.params.marks)]
        fields: dict[str, Any] = {
            "image": self.image,
            "model": self.model,
            "prompts": [*phrases, *items],
            "coordinates": "pixel",
        }
        return Question(fields, {"prompts": "params", "prompt": "params"})


class Shape(BaseModel):
    """An outline in pixels, its last point the first; parts of one region share a ``group_id``."""

    label: str
    shape_type: str
    points: list[list[float]]
    score: float | None
    group_id: int | None


class _TokenRoute(APIRoute):
    """Leaves requests without X-AnyLabeling's header to the next route."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] == "http" and "token" not in Headers(scope=scope):
            return Match.NONE, {}
        return super().matches(scope)


async def models(request: Request) -> dict[str, Any]:
    keeper = services_of(request).keeper
    keeper.require_ready()
    described = {
        name: {
            "display_name": name,
            "widgets": list(_WIDGETS),
            "params": {},
            "batch_processing_mode": "text_prompt",
        }
        for name in keeper.engine.capabilities.models
    }
    return {"success": True, "data": described}


router.routes.append(_TokenRoute("/v1/models", models, methods=["GET"], include_in_schema=False))


@router.post("/v1/predict")
async def predict(request: Request) -> dict[str, Any]:
    async with admitted(request) as fields:
        asked = checked(PredictRequest, fields)
        response = await answered(request, asked.question())
    shapes = await services_of(request).segmenter.work(_shapes, response, asked.params)
    return {"success": True, "data": {"shapes": shapes, "description": ""}}


def _shapes(response: SegmentResponse, params: Params) -> list[dict[str, Any]]:
    shapes = []
    for result in response.results:
        if result.score is not None and result.score < params.conf_threshold:
            continue
        rings = _outlines(result, response.image, params.epsilon_factor)
        group = result.index + 1 if len(rings) > 1 else None
        label, score = result.prompt or _UNNAMED, result.score
        for ring in rings:
            points = [*ring, ring[0]]
            shapes.append(
                Shape(
                    label=label, shape_type="polygon", points=points, score=score, group_id=group
                ).model_dump()
            )
    return shapes


def _outlines(result: Result, image: ImageInfo, fineness: float) -> list[list[list[float]]]:
    """The region's parts in pixels, without vertices within ``fineness`` times its length of a
    part's outline."""
    size = ImageSize(image.height, image.width)
    outlines = []
    for outline in result.polygons or ():
        ring = tuple(Point(x / size.width, y / size.height) for x, y in outline)
        tolerance_px = fineness * _length(outline)
        (ring,) = simplify_region(Region((ring,)), size, tolerance_px).parts
        outlines.append(_pixels(ring, size))
    return outlines


def _pixels(ring: Ring, size: ImageSize) -> list[list[float]]:
    return [[round(x * size.width, 2), round(y * size.height, 2)] for x, y in ring]


def _length(outline: list[list[float]]) -> float:
    return sum(map(math.dist, outline, [*outline[1:], outline[0]]))
