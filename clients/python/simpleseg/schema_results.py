"""What a response of the HTTP contract holds. Clients ignore fields that they do not know."""

from typing import Literal

from pydantic import ConfigDict, Field

from simpleseg.formats.coco import CocoAnnotation
from simpleseg.formats.geojson import GeoJsonMultiPolygon
from simpleseg.formats.label_studio import LabelStudioResult
from simpleseg.formats.labelme import LabelmeDocument
from simpleseg.schema_base import FinishReason, ResponseModel, ScoreType, Status, Task


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
    prompt), total; and, since the request came in, first_token and first_point: the first vertex
    written, which a look again or another sample may replace.
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
