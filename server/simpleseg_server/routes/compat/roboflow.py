"""Roboflow's ``POST /sam3/concept_segment``, for ``sam3_concept_segment`` of its ``inference-sdk``.

A prompt has one region at most, where SAM 3 finds every instance. Errors have the ``message`` that
the client shows, beside our own shape.
"""

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

from simpleseg.schema import RequestModel, Result, Rle
from simpleseg_server.errors import ApiError, render
from simpleseg_server.routes.compat.asking import Question, admitted, answered, checked, unsupported
from simpleseg_server.services import services_of

router = APIRouter(include_in_schema=False)
_THEIR_MODELS = "sam3/"
"""What the client asks for where it is told nothing: whatever answers at this route."""

Threshold = Annotated[float, Field(ge=0, le=1)]


class Picture(RequestModel):
    type: Literal["base64", "url"]
    value: str

    def source(self) -> dict[str, str]:
        return {self.type: self.value}


class BoxByCorners(RequestModel):
    x0: float
    y0: float
    x1: float
    y1: float

    def corners(self) -> list[float]:
        return [self.x0, self.y0, self.x1, self.y1]


class BoxBySize(RequestModel):
    x: float
    y: float
    width: float
    height: float

    def corners(self) -> list[float]:
        return [self.x, self.y, self.x + self.width, self.y + self.height]


class Sam3Prompt(RequestModel):
    """A phrase, a box in pixels, or both."""

    type: str | None = None
    text: str | None = None
    output_prob_thresh: Threshold | None = None
    boxes: list[BoxByCorners | BoxBySize] | None = None
    box_labels: list[bool | int] | None = None

    def item(self, index: int) -> dict[str, Any]:
        """As a prompt of ``POST /segment``. Raises ApiError for what is not served."""
        if len(self.boxes or ()) > 1 or not all(self.box_labels or (True,)):
            message = "a prompt may have one box, and that around the object"
            raise unsupported(message, f"prompts[{index}].boxes")
        item: dict[str, Any] = {"text": self.text} if self.text else {}
        if self.boxes:
            item["box"] = self.boxes[0].corners()
        return item


class Sam3Request(RequestModel):
    """The client's body. ``api_key``, ``source`` and ``source_info`` are for Roboflow's cloud."""

    image: Picture
    prompts: list[Sam3Prompt]
    model_id: str = _THEIR_MODELS
    output_prob_thresh: Threshold = 0.5
    nms_iou_threshold: None = None
    format: Literal["polygon", "rle"] = "polygon"
    api_key: str | None = None
    source: str | None = None
    source_info: str | None = None

    def question(self) -> Question:
        """Raises ApiError for what is not served."""
        fields: dict[str, Any] = {
            "image": self.image.source(),
            "prompts": [prompt.item(index) for index, prompt in enumerate(self.prompts)],
            "coordinates": "pixel",
            "return": ["rle" if self.format == "rle" else "polygons"],
        }
        if not self.model_id.startswith(_THEIR_MODELS):
            fields["model"] = self.model_id
        return Question(fields, {"image": "image.value", "model": "model_id"})

    def threshold(self, index: int) -> float:
        own = self.prompts[index].output_prob_thresh
        return self.output_prob_thresh if own is None else own


class Prediction(BaseModel):
    """``masks`` are outlines to be united, in whole pixels, or one run-length encoding."""

    masks: list[list[list[int]]] | Rle
    confidence: float | None
    format: str


class Echo(BaseModel):
    prompt_index: int
    type: str | None
    text: str | None
    num_boxes: int


class PromptResult(BaseModel):
    prompt_index: int
    echo: Echo
    predictions: list[Prediction]


class Sam3Answer(BaseModel):
    prompt_results: list[PromptResult]
    time: Annotated[float, Field(description="Seconds.")]


@router.post("/sam3/concept_segment")
async def concept_segment(request: Request) -> JSONResponse:
    try:
        async with admitted(request) as fields:
            asked = checked(Sam3Request, fields)
            response = await answered(request, asked.question())
    except ApiError as error:
        return _refused(request, error)
    results = [_prompt_result(asked, result) for result in response.results]
    seconds = request.state.times.elapsed_ms() / 1000
    return JSONResponse(Sam3Answer(prompt_results=results, time=seconds).model_dump())


def _prompt_result(asked: Sam3Request, result: Result) -> PromptResult:
    prompt = asked.prompts[result.index]
    echo = Echo(
        prompt_index=result.index,
        type=prompt.type or ("text" if prompt.text else "visual"),
        text=prompt.text,
        num_boxes=len(prompt.boxes or ()),
    )
    predictions = []
    is_sure = result.score is None or result.score >= asked.threshold(result.index)
    if result.area and is_sure:
        masks = _masks(result)
        predictions = [Prediction(masks=masks, confidence=result.score, format=asked.format)]
    return PromptResult(prompt_index=result.index, echo=echo, predictions=predictions)


def _masks(result: Result) -> list[list[list[int]]] | Rle:
    if result.rle is not None:
        return result.rle
    return [[[round(x), round(y)] for x, y in ring] for ring in result.polygons or ()]


def _refused(request: Request, error: ApiError) -> JSONResponse:
    services_of(request).metrics.rejections.labels(error.code).inc()
    answer = render(error, request.state.request_id)
    body = {"message": error.message, **json.loads(bytes(answer.body))}
    kept = {
        name: answer.headers[name]
        for name in ("retry-after", "retry-after-ms")
        if name in answer.headers
    }
    return JSONResponse(body, answer.status_code, kept)
