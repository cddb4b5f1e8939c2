"""The HTTP contract of ``POST /v1/chat/completions``: OpenAI's shapes, and what of them is served.

Every parameter of OpenAI's is in one of three groups. It is honoured; or it is taken only where it
asks for what happens anyway (``Only``: null, a default), and is 400 ``unsupported_value`` else; or
it labels the request for its sender (``user``, ``metadata``, ``safety_identifier``,
``prompt_cache_key``) and has no bearing on an answer. Any other name is 400 ``unknown_parameter``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from simpleseg.schema import (
    MAX_SEED,
    UNION_TAG,
    Coordinates,
    Output,
    RequestModel,
)
from simpleseg.schema_rules import CHAT_RULES, exactly_one

MAX_MESSAGES = 256
MAX_PARTS = 64


@dataclass(frozen=True, eq=False)  # typing takes equal annotations for the same, and 0 == False
class Only:
    """For ``Annotated``: null and these values are taken; they ask for what happens anyway."""

    values: Sequence[Any] = ()

    def check(self, value: Any) -> Any:
        for one in (None, *self.values):
            if value == one and isinstance(value, bool) == isinstance(one, bool):
                return value
        raise PydanticCustomError("unsupported_value", "this server has only the default of it")

    def __get_pydantic_core_schema__(self, source: Any, _: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, _: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"enum": [None, *self.values]}


def _field_of(name: str, known: Sequence[str]) -> Any:
    """A discriminator that reads a field; the tags of the choice are its values."""

    def read(value: Any) -> str | None:
        tag = getattr(value, name, None) if isinstance(value, BaseModel) else None
        tag = cast("dict[str, Any]", value).get(name) if isinstance(value, dict) else tag
        return f"{UNION_TAG}{tag}" if tag in known else None

    listed = ", ".join(known)
    return Discriminator(
        read,
        custom_error_type="unsupported_value",
        custom_error_message=f"must be an object whose {name} is one of: {listed}",
    )


def _tag(name: str) -> Tag:
    return Tag(f"{UNION_TAG}{name}")


def _text_or_list(value: Any) -> str:
    return f"{UNION_TAG}list" if isinstance(value, list) else f"{UNION_TAG}text"


class TextPart(RequestModel):
    type: Literal["text"]
    text: str


class ImageUrl(RequestModel):
    """``detail`` makes no difference: every image is scaled to the size that the model reads."""

    url: str = Field(
        description="`data:image/...;base64,...` or, if allowed, `https://...`",
        json_schema_extra={"format": "uri"},
    )
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(RequestModel):
    type: Literal["image_url"]
    image_url: ImageUrl


TextParts = Annotated[list[TextPart], Field(min_length=1, max_length=MAX_PARTS)]
Part = Annotated[
    Annotated[TextPart, _tag("text")] | Annotated[ImagePart, _tag("image_url")],
    _field_of("type", ("text", "image_url")),
]
Parts = Annotated[list[Part], Field(min_length=1, max_length=MAX_PARTS)]
Texts = Annotated[
    Annotated[str, _tag("text")] | Annotated[TextParts, _tag("list")],
    Discriminator(_text_or_list),
]
Content = Annotated[
    Annotated[str, _tag("text")] | Annotated[Parts, _tag("list")],
    Discriminator(_text_or_list),
]


class SystemMessage(RequestModel):
    role: Literal["system", "developer"]
    content: Texts
    name: Annotated[Any, Only()] = None


class UserMessage(RequestModel):
    """The image stands before the texts of its message, wherever its part is; several texts are
    joined by a line break."""

    role: Literal["user"]
    content: Content
    name: Annotated[Any, Only()] = None


class AssistantMessage(RequestModel):
    """An answer as this server gave it, or any text. ``segmentation`` may be left in a message that
    is sent back; the model reads ``content`` alone."""

    role: Literal["assistant"]
    content: Texts
    segmentation: Any = None
    name: Annotated[Any, Only()] = None
    refusal: Annotated[Any, Only()] = None
    annotations: Annotated[Any, Only(([],))] = None
    audio: Annotated[Any, Only()] = None
    function_call: Annotated[Any, Only()] = None
    tool_calls: Annotated[Any, Only(([],))] = None


Message = Annotated[
    Annotated[SystemMessage, _tag("system")]
    | Annotated[SystemMessage, _tag("developer")]
    | Annotated[UserMessage, _tag("user")]
    | Annotated[AssistantMessage, _tag("assistant")],
    _field_of("role", ("system", "developer", "user", "assistant")),
]


class TextFormat(RequestModel):
    """The default: the grammar is on where the last message is an instruction that the model was
    trained on."""

    type: Literal["text"]


class PolygonFormat(RequestModel):
    """Polygons under the grammar, whatever the last message says; the other fields are those of
    ``POST /segment`` and shape ``message.segmentation``."""

    type: Literal["simpleseg_polygons"]
    max_points: int | None = Field(default=None, ge=3)
    outputs: list[Output] | None = Field(default=None, alias="return")
    coordinates: Coordinates = "normalized"


class JsonSchema(RequestModel):
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(RequestModel):
    """Where the operator lets clients bring grammars."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class JsonObjectFormat(RequestModel):
    """Where the operator lets clients bring grammars."""

    type: Literal["json_object"]


class StructuredOutputs(RequestModel):
    """vLLM's words for a grammar, exactly one of them, where the operator lets clients bring
    grammars."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [exactly_one("json", "regex", "choice", "grammar", "json_object")]
        }
    )

    json_: dict[str, Any] | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = Field(default=None, min_length=1)
    grammar: str | None = Field(default=None, description="EBNF.")
    json_object: Literal[True] | None = None

    @model_validator(mode="after")
    def _one(self) -> "StructuredOutputs":
        if len(self.given()) != 1:
            names = "json, regex, choice, grammar and json_object"
            raise PydanticCustomError("parameter_ambiguous", f"give exactly one of {names}")
        return self

    def given(self) -> dict[str, Any]:
        return self.model_dump(by_alias=True, exclude_none=True)


ResponseFormat = Annotated[
    Annotated[TextFormat, _tag("text")]
    | Annotated[PolygonFormat, _tag("simpleseg_polygons")]
    | Annotated[JsonSchemaFormat, _tag("json_schema")]
    | Annotated[JsonObjectFormat, _tag("json_object")],
    _field_of("type", ("text", "simpleseg_polygons", "json_schema", "json_object")),
]


class StreamOptions(RequestModel):
    include_usage: bool | None = None
    include_obfuscation: Annotated[Any, Only((False,))] = None


class ChatRequest(RequestModel):
    """The JSON body of ``POST /v1/chat/completions``.

    One image in the whole conversation, in a user's message; the last message is the user's.
    """

    model_config = ConfigDict(json_schema_extra={"allOf": CHAT_RULES})

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    model: str | None = Field(default=None, description="The served model's id, or nothing.")
    max_tokens: int | None = Field(default=None, ge=1, description="Most tokens of an answer.")
    max_completion_tokens: int | None = Field(
        default=None, ge=1, description="The same as max_tokens; give only one of them."
    )
    temperature: float | None = Field(
        default=None, ge=0, le=2, description="0, which is also the default here, is greedy."
    )
    n: int | None = Field(
        default=None, ge=1, description="Answers to the one question, each with a seed of its own."
    )
    seed: int | None = Field(default=None, ge=-MAX_SEED - 1, le=MAX_SEED)
    stream: bool | None = None
    stream_options: StreamOptions | None = Field(default=None, description="Only with stream.")
    logprobs: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = Field(
        default=None, description="Instead of a response_format."
    )
    deadline_ms: int | None = Field(
        default=None, ge=1, description="As in `POST /segment`; finish_reason is then `length`."
    )

    user: str | None = Field(default=None, description="A label; no bearing on the answer.")
    metadata: dict[str, str] | None = Field(
        default=None, description="Labels; no bearing on the answer."
    )
    safety_identifier: str | None = Field(
        default=None, description="A label; no bearing on the answer."
    )
    prompt_cache_key: str | None = Field(
        default=None, description="A label: what is cached is found by the image itself."
    )

    top_logprobs: Annotated[Any, Only((0,))] = None
    top_p: Annotated[Any, Only((1,))] = None
    presence_penalty: Annotated[Any, Only((0,))] = None
    frequency_penalty: Annotated[Any, Only((0,))] = None
    logit_bias: Annotated[Any, Only(({},))] = None
    stop: Annotated[Any, Only(([],))] = None
    store: Annotated[Any, Only((False,))] = None
    tools: Annotated[Any, Only(([],))] = None
    tool_choice: Annotated[Any, Only(("none", "auto"))] = None
    parallel_tool_calls: Annotated[Any, Only((True, False))] = None
    functions: Annotated[Any, Only(([],))] = None
    function_call: Annotated[Any, Only(("none", "auto"))] = None
    modalities: Annotated[Any, Only((["text"],))] = None
    service_tier: Annotated[Any, Only(("auto", "default"))] = None
    audio: Annotated[Any, Only()] = None
    moderation: Annotated[Any, Only()] = None
    prediction: Annotated[Any, Only()] = None
    prompt_cache_options: Annotated[Any, Only()] = None
    prompt_cache_retention: Annotated[Any, Only()] = None
    reasoning_effort: Annotated[Any, Only(("none",))] = None
    verbosity: Annotated[Any, Only()] = None
    web_search_options: Annotated[Any, Only()] = None

    @field_validator("messages")
    @classmethod
    def _question_last(cls, messages: list[Message]) -> list[Message]:
        if messages[-1].role != "user":
            raise PydanticCustomError("unsupported_value", "the last message must be the user's")
        return messages

    @field_validator("structured_outputs")
    @classmethod
    def _one_shape(
        cls, shape: StructuredOutputs | None, info: ValidationInfo
    ) -> StructuredOutputs | None:
        if shape is not None and info.data.get("response_format") is not None:
            message = "give only one of response_format and structured_outputs"
            raise PydanticCustomError("parameter_ambiguous", message)
        return shape

    @field_validator("max_completion_tokens")
    @classmethod
    def _one_limit(cls, limit: int | None, info: ValidationInfo) -> int | None:
        if limit is not None and info.data.get("max_tokens") is not None:
            message = "give only one of max_tokens and max_completion_tokens"
            raise PydanticCustomError("parameter_ambiguous", message)
        return limit

    @field_validator("stream_options")
    @classmethod
    def _for_streams(
        cls, options: StreamOptions | None, info: ValidationInfo
    ) -> StreamOptions | None:
        if options is not None and not info.data.get("stream"):
            message = "stream_options are only for streams"
            raise PydanticCustomError("not_applicable", message)
        return options
