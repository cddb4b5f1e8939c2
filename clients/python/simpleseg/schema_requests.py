"""What a request of the HTTP contract may say. Unknown fields are errors; no type is converted."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from simpleseg.schema_base import (
    MAX_SAMPLES,
    MAX_SEED,
    UNION_TAG,
    XY,
    XYXY,
    Coordinates,
    Include,
    Outline,
    Output,
    RequestModel,
    Task,
)
from simpleseg.schema_rules import (
    IMAGE_RULES,
    IMAGE_TEXT,
    PROMPT_RULES,
    UPLOAD_RULES,
    segment_rules,
)

_SAMPLES_TEMPERATURE = 0.7


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


class UploadRequest(RequestModel):
    """The JSON body of ``POST /v1/images``."""

    model_config = ConfigDict(json_schema_extra={"allOf": UPLOAD_RULES})

    image: Image


class TokenizeRequest(RequestModel):
    """The JSON body of ``POST /tokenize``."""

    prompt: str = Field(description="A text, as `prompt` of `POST /segment` or of a message.")
    model: str | None = Field(default=None, description="The served model's id, or nothing.")


class BatchRequest(RequestModel):
    """The JSON body of ``POST /v1/segment/batch``."""

    requests: list[SegmentRequest] = Field(min_length=1)
