"""The HTTP contract of ``POST /segment``, once: what a request may say and what a response holds.

Requests forbid unknown fields and convert no types. Responses ignore unknown fields, so that an
older client reads a newer server. Coordinates are x first; their unit is ``coordinates``.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from simpleseg.formats.coco import CocoAnnotation
from simpleseg.formats.geojson import GeoJsonMultiPolygon
from simpleseg.formats.label_studio import LabelStudioResult
from simpleseg.formats.labelme import LabelmeDocument
from simpleseg.schema_rules import (
    IMAGE_RULES,
    IMAGE_TEXT,
    PROMPT_RULES,
    UPLOAD_RULES,
    segment_rules,
)

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
_SAMPLES_TEMPERATURE = 0.7

UNION_TAG = "~"
"""First character of the tags that pydantic puts into error locations for a choice of types."""


class RequestModel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ResponseModel(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


XY = Annotated[list[float], Field(min_length=2, max_length=2)]
Outline = Annotated[list[XY], Field(min_length=3)]
XYXY = Annotated[list[float], Field(min_length=4, max_length=4)]


class ImageInput(RequestModel):
    """The image: exactly one of ``base64`` (file bytes), ``url`` (a data URL, or an http(s) URL
    where the operator lets the server fetch it) and ``id`` (of an image that was uploaded to
    ``/v1/images``)."""

    model_config = ConfigDict(json_schema_extra={"allOf": IMAGE_RULES})

    base64: Annotated[str, Field(json_schema_extra={"format": "byte"})] | None = Field(
        default=None, description="The image file, base64-encoded."
    )
    url: Annotated[str, Field(json_schema_extra={"format": "uri"})] | None = Field(
        default=None, description="`data:image/...;base64,...` or, if allowed, `https://...`"
    )
    id: str | None = Field(default=None, description="Of an uploaded image.")

    @model_validator(mode="after")
    def _one_source(self) -> "ImageInput":
        given = [value for value in (self.base64, self.url, self.id) if value is not None]
        if not given:
            raise PydanticCustomError("image_missing", "give image.base64, image.url or image.id")
        if len(given) > 1:
            raise PydanticCustomError(
                "image_source_ambiguous", "give only one of image.base64, image.url and image.id"
            )
        return self


class PromptItem(RequestModel):
    """One object to find, named by a text, a point on it, a box around it, its polygons, or several
    of these."""

    model_config = ConfigDict(json_schema_extra={"allOf": PROMPT_RULES})

    text: str | None = Field(default=None, description="A noun phrase: `the left dog`.")
    point: XY | None = Field(default=None, description="[x, y], a point on the object.")
    box: XYXY | None = Field(default=None, description="[x0, y0, x1, y1], a box around it.")
    polygons: Annotated[list[Outline], Field(min_length=1)] | None = Field(
        default=None,
        description="Its region, as in a result: to ask for its box, a point on it or its name.",
    )

    @model_validator(mode="after")
    def _not_empty(self) -> "PromptItem":
        if all(value is None for value in (self.text, self.point, self.box, self.polygons)):
            message = "a prompt needs a text, a point, a box or polygons"
            raise PydanticCustomError("prompt_empty", message)
        return self


def _kind(value: Any) -> str:
    return f"{UNION_TAG}object" if isinstance(value, dict | BaseModel) else f"{UNION_TAG}text"


Prompt = Annotated[
    Annotated[str, Tag(f"{UNION_TAG}text")] | Annotated[PromptItem, Tag(f"{UNION_TAG}object")],
    Discriminator(_kind),
]
Image = Annotated[
    Annotated[str, Tag(f"{UNION_TAG}text"), Field(json_schema_extra=IMAGE_TEXT)]
    | Annotated[ImageInput, Tag(f"{UNION_TAG}object")],
    Discriminator(_kind),
]


class SegmentRequest(RequestModel):
    """The JSON body of ``POST /segment``; a multipart form has the same fields.

    ``return`` is only for task ``region``. In a multipart form ``image`` is the file, ``prompt``
    may be repeated, ``prompts`` is a JSON list and ``return`` may be repeated or comma-separated.
    The field named ``return`` is the attribute ``outputs``.

    >>> SegmentRequest.model_validate({"image": "aGk=", "prompt": "the left dog"}).items()
    (PromptItem(text='the left dog', point=None, box=None, polygons=None),)
    """

    model_config = ConfigDict(json_schema_extra={"allOf": segment_rules()})

    image: Image | None = Field(
        default=None,
        description="A URL or base64 string, or {url}, {base64} or {id}. In a form: the file or "
        "an http(s) URL.",
    )
    model: str | None = Field(default=None, description="The served model's id, or nothing.")
    prompt: Prompt | None = Field(default=None, description="One prompt.")
    prompts: list[Prompt] | None = Field(
        default=None, description="Several prompts, one result each."
    )
    task: Task = Field(default="region", description="What to answer with.")
    outputs: list[Output] | None = Field(
        default=None,
        alias="return",
        description="Representations of a region; polygons and bbox where nothing is said.",
    )
    coordinates: Coordinates = Field(
        default="normalized",
        description="Unit of all coordinates in request and response: [0, 1], or pixels of the "
        "displayed image (EXIF orientation applied). `svg`, `coco` and `labelme` are always in "
        "pixels, `label_studio` in percent and `yolo` in [0, 1], as these formats have it.",
    )
    simplify: float | None = Field(
        default=None,
        ge=0,
        description="Leave out vertices that lie within this distance of the outline without them "
        "(Douglas-Peucker): pixels, or a share of the image's longer side where coordinates are "
        "normalized. Every part keeps at least 3. All outputs show the simplified region.",
    )
    max_points: int | None = Field(default=None, ge=3, description="Most vertices of a region.")
    max_tokens: int | None = Field(default=None, ge=1, description="Most tokens of an answer.")
    temperature: float = Field(default=0.0, ge=0, le=2, description="0 is greedy.")
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    deadline_ms: int | None = Field(
        default=None,
        ge=1,
        description="Milliseconds after which what is unfinished is `truncated`, not waited for.",
    )
    stream: bool = Field(default=False, description="Answer with server-sent events.")
    samples: int = Field(
        default=1,
        ge=1,
        le=MAX_SAMPLES,
        description="Answers to each prompt. The one with the highest mean IoU with the others "
        "counts, and that mean is its score. Needs a temperature above 0; 0.7 if none is given.",
    )
    refine: bool = Field(
        default=False,
        description="Ask again about a part of the image around the first answer: for small "
        "objects, large images and sharp corners. The second answer counts if it means the same "
        "object.",
    )

    include: list[Include] = Field(
        default=["timings"],
        description="What else to tell: `timings` of the stages, the model's `raw_text`, the "
        "`scores` that the score is made of.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "SegmentRequest":
        if self.prompt is not None and self.prompts is not None:
            raise PydanticCustomError("prompt_ambiguous", "give only one of prompt and prompts")
        if self.prompt is None and not self.prompts:
            raise PydanticCustomError("prompt_missing", "give prompt or prompts")
        if self.outputs is not None and self.task != "region":
            raise PydanticCustomError("return_not_applicable", "return is only for task region")
        if self.simplify is not None and self.task != "region":
            raise PydanticCustomError("simplify_not_applicable", "simplify is only for task region")
        if self.task != "region" and (self.samples > 1 or self.refine):
            raise PydanticCustomError(
                "not_applicable", "samples and refine are only for task region"
            )
        if self.samples > 1 and self.sampling_temperature == 0:
            raise PydanticCustomError(
                "temperature_needed", "several samples need a temperature above 0"
            )
        return self

    @property
    def sampling_temperature(self) -> float:
        """The temperature; where several samples are asked for and none is given, 0.7."""
        is_given = "temperature" in self.model_fields_set
        return _SAMPLES_TEMPERATURE if self.samples > 1 and not is_given else self.temperature

    def items(self) -> tuple[PromptItem, ...]:
        """The prompts in order, strings as PromptItem."""
        given = self.prompts if self.prompts is not None else [self.prompt]
        return tuple(
            item if isinstance(item, PromptItem) else PromptItem(text=item) for item in given
        )


class ImageInfo(ResponseModel):
    """The displayed image, to which all coordinates refer.

    ``exif_applied`` tells that the file's EXIF orientation turned or mirrored the stored picture.
    """

    width: int
    height: int
    exif_applied: bool
    id: str | None = Field(default=None, description="Of an uploaded image.")


class Rle(ResponseModel):
    """COCO run-length encoding of a mask: ``size`` is [height, width], ``counts`` compressed."""

    size: list[int]
    counts: str


class Scores(ResponseModel):
    """Geometric mean probabilities, in [0, 1], of an answer's tokens.

    ``coordinate``: of those that hold decimals; ``leading``: a number's first decimal; ``weakest``:
    the least of these; ``first_vertex``: the first two of these; ``structure``: all other tokens.
    """

    coordinate: float
    leading: float
    weakest: float
    first_vertex: float
    structure: float


class Result(ResponseModel):
    """The answer to one prompt. Outputs that were not asked for are absent.

    ``status``: ``ok``; ``empty``, the object is not in the image; ``truncated``, the answer ended
    early and what is whole is given; ``invalid``, there is no usable answer (see ``warnings``).
    ``polygons`` are parts to be united: exterior rings, not closed, in the order in which the model
    wrote them (clockwise on screen, as the models are trained). They are not a GeoJSON Polygon.
    ``area`` is the share of the image, in [0, 1].
    ``score`` in [0, 1] is what ``score_type`` names: the IoU that is to be expected, where the
    model was calibrated, else a mean probability or agreement; null without an answer.
    """

    index: int
    prompt: str | None = None
    status: Status
    finish_reason: FinishReason
    score: float | None = None
    score_type: ScoreType | None = None
    area: float | None = None
    bbox: list[float] | None = None
    polygons: list[list[list[float]]] | None = None
    rle: Rle | None = None
    png: str | None = Field(default=None, description="1-bit PNG of the mask, base64-encoded.")
    svg: str | None = Field(default=None, description="An SVG document as large as the image.")
    geojson: GeoJsonMultiPolygon | None = Field(
        default=None,
        description="The area as a valid MultiPolygon, overlap united, in the unit of `coordinates`"
        " with y downwards.",
    )
    coco: CocoAnnotation | None = Field(
        default=None,
        description="A COCO annotation: id is index + 1, image_id is 1, and categories are numbered"
        " from 1 in the order in which the prompts name them.",
    )
    labelme: LabelmeDocument | None = Field(
        default=None, description="A labelme file; `imagePath` is for the client to fill in."
    )
    label_studio: list[LabelStudioResult] | None = Field(
        default=None,
        description="The `result` list of a prediction, for tags named `label` and `image`.",
    )
    yolo: str | None = Field(
        default=None,
        description="A line of YOLO segmentation labels; classes are numbered from 0 in the order "
        "in which the prompts name them. Several parts are joined by bridges without width.",
    )
    boxes: list[list[float]] | None = Field(default=None, description="For task box.")
    points: list[list[float]] | None = Field(default=None, description="For task point.")
    text: str | None = Field(default=None, description="For task text.")
    raw_text: str | None = Field(default=None, description="What the model wrote, to the letter.")
    scores: Scores | None = None


class DraftUsage(ResponseModel):
    """Drafted tokens that the model verified: how many were right, and how many were not."""

    accepted: int
    rejected: int


class Usage(ResponseModel):
    """Tokens over all prompts; ``forward_passes`` are decode steps (fewer if drafted).

    ``drafts``, absent where none were counted, is by kind: ``digits`` of coordinates,
    ``structure``, ``unknown``. Of answers that a deadline ended only the tokens that came are
    counted, no prompt. ``cached_tokens``, absent where the engine does not tell, are those of
    ``prompt_tokens`` that earlier prompts had left computed.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    forward_passes: int
    cached_tokens: int | None = None
    drafts: dict[str, DraftUsage] | None = None


class ResultWarning(ResponseModel):
    """Something that was dropped, clipped or failed; ``result`` is the index of the result."""

    code: str
    message: str
    result: int | None = None


class SegmentResponse(ResponseModel):
    """The answer of ``POST /segment``, one result for each prompt, in order.

    ``timings_ms`` maps stages to milliseconds: read_body, fetch (of an image by URL), decode_image
    (decode and scale), queue, prefill, decode, generate, parse and rasterize (of the slowest
    prompt), total; and, since the request came in, first_token and first_point.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "seg_6f1c8a0b52d4",
                    "object": "segmentation",
                    "created": 1760000000,
                    "model": "simpleseg-demo",
                    "system_fingerprint": "simpleseg-0.1.0-transformers-4f1c0a93d7be",
                    "image": {"width": 1280, "height": 960, "exif_applied": False},
                    "results": [
                        {
                            "index": 0,
                            "prompt": "the red car on the left",
                            "status": "ok",
                            "finish_reason": "stop",
                            "score": 0.87,
                            "score_type": "geometric_mean_coordinate_token_probability",
                            "area": 0.0512,
                            "bbox": [0.112, 0.431, 0.382, 0.707],
                            "polygons": [[[0.131, 0.431], [0.382, 0.455], [0.371, 0.707]]],
                        }
                    ],
                    "usage": {
                        "prompt_tokens": 64,
                        "completion_tokens": 52,
                        "total_tokens": 116,
                        "forward_passes": 20,
                    },
                    "timings_ms": {"decode_image": 6.1, "generate": 84.0, "total": 95.2},
                    "warnings": [],
                }
            ]
        }
    )

    id: str
    object: Literal["segmentation"] = "segmentation"
    created: int
    model: str
    system_fingerprint: str = Field(
        default="",
        description="Server, engine and grammars: another one tells that the same request, with "
        "the same seed, may get another answer.",
    )
    image: ImageInfo
    results: list[Result]
    usage: Usage
    timings_ms: dict[str, float] = Field(default_factory=dict)
    warnings: list[ResultWarning]


class UploadRequest(RequestModel):
    """The JSON body of ``POST /v1/images``."""

    model_config = ConfigDict(json_schema_extra={"allOf": UPLOAD_RULES})

    image: Image


class UploadedImage(ResponseModel):
    """An image that the server keeps until ``expires_at``, in seconds since 1970, or until the room
    is needed for others."""

    id: str
    object: Literal["image"] = "image"
    bytes: int
    width: int
    height: int
    exif_applied: bool
    created: int
    expires_at: int


class TokenizeRequest(RequestModel):
    """The JSON body of ``POST /tokenize``."""

    prompt: str = Field(description="A text, as `prompt` of `POST /segment` or of a message.")
    model: str | None = Field(default=None, description="The served model's id, or nothing.")


class Tokens(ResponseModel):
    """A text as the model reads it, without the instruction and the chat around it.

    ``max_tokens`` is the most that an answer may have.
    """

    object: Literal["tokens"] = "tokens"
    model: str
    count: int
    tokens: list[int]
    max_tokens: int


class DeletedImage(ResponseModel):
    id: str
    object: Literal["image"] = "image"
    deleted: bool


class BatchRequest(RequestModel):
    """The JSON body of ``POST /v1/segment/batch``."""

    requests: list[SegmentRequest] = Field(min_length=1)


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


class ErrorInfo(ResponseModel):
    """What went wrong. ``code`` is stable and for programs; ``param`` names the field at fault."""

    code: str
    message: str
    type: str
    param: str | None = None
    request_id: str
    retry_after_ms: int | None = None


class BatchItem(ResponseModel):
    """What ``/segment`` would have answered: an HTTP status with a response or an error."""

    index: int
    status: int
    response: SegmentResponse | None = None
    error: ErrorInfo | None = None


class BatchResponse(ResponseModel):
    """One item for each request, in order."""

    object: Literal["segmentation.batch"] = "segmentation.batch"
    results: list[BatchItem]


class ErrorResponse(ResponseModel):
    """The body of every answer with a status of 400 or above, on every route."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": {
                        "code": "unknown_parameter",
                        "message": "unknown parameter",
                        "type": "invalid_request_error",
                        "param": "prompts[0].txt",
                        "request_id": "req_5b1f3c9a7e20",
                    }
                }
            ]
        }
    )

    error: ErrorInfo


class ModelInfo(ResponseModel):
    """One served model, in the shape of OpenAI's list plus what it can do. An adapter's ``parent``
    is the model that it changes."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    parent: str | None = None
    capabilities: list[str]
    tasks: list[Task]


class ModelList(ResponseModel):
    object: Literal["list"] = "list"
    data: list[ModelInfo]


class Health(ResponseModel):
    """``status``: ``ready``, ``loading``, ``unavailable`` (what runs the model cannot be reached,
    and may come back), ``draining`` (the server is being stopped) or ``dead`` (the engine must be
    restarted)."""

    status: Literal["ready", "loading", "unavailable", "draining", "dead"]
    model: str | None = None
    engine: str | None = None


class Version(ResponseModel):
    """What runs: this server's version, the model and engine once they are loaded, and a hash of
    the grammars, by which two servers that constrain answers alike are known."""

    version: str
    model: str | None = None
    engine: str | None = None
    grammar: str
