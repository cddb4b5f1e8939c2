"""One chat request as it came in: the conversation checked, its image still a file."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from pydantic import ValidationError

from simpleseg.chat_schema import (
    ChatRequest,
    ImagePart,
    JsonObjectFormat,
    JsonSchemaFormat,
    Message,
    PolygonFormat,
    TextFormat,
    TextPart,
    UserMessage,
)
from simpleseg.schema import MAX_SEED, PromptItem, SegmentRequest
from simpleseg_polygon.prompts import Target, match_instruction
from simpleseg_server.body import read_json_body
from simpleseg_server.calls import Call, Wording, url_source
from simpleseg_server.config import Settings
from simpleseg_server.engines.base import ClientGrammar, GrammarKind, Turn
from simpleseg_server.errors import ApiError, from_validation_error

MAX_GRAMMAR_BYTES = 16 * 1024
_SUCCEEDED = {
    "guided_json": "structured_outputs.json, or response_format json_schema",
    "guided_regex": "structured_outputs.regex",
    "guided_choice": "structured_outputs.choice",
    "guided_grammar": "structured_outputs.grammar",
}


@dataclass(frozen=True)
class ChatCall:
    """A chat request, and the same as a call: one item for each answer that is asked for."""

    request: ChatRequest
    call: Call

    def own_param(self, param: str | None) -> str | None:
        """The chat's name of a field of a segmentation request."""
        if param == "max_tokens" and self.request.max_completion_tokens is not None:
            return "max_completion_tokens"
        return {"max_points": "response_format.max_points", "task": "messages"}.get(
            param or "", param
        )


def read_chat(data: bytes, content_type: str, settings: Settings) -> ChatCall:
    """A request body as a ChatCall. Raises ApiError with the field at fault."""
    fields = read_json_body(data, content_type)
    try:
        request = ChatRequest.model_validate(fields)
    except ValidationError as error:
        raise _hinted(from_validation_error(error)) from None
    grammar = _client_grammar(request, settings)
    _check_count(request, settings)
    turns = _turns(request.messages, settings)
    question = turns[-1].text
    if not question.strip():
        param = f"messages[{len(turns) - 1}].content"
        raise ApiError(422, "prompt_empty", "the last message has no text", param=param)
    part, param = _only_image(request.messages)
    source = url_source(part.image_url.url, settings, param)
    target, subject = _meaning(question, request)
    wording = Wording(question, tuple(turns[:-1]), target != "text", grammar)
    segmentation = _segmentation(request, target, subject)
    items = segmentation.items()
    params = (f"messages[{len(turns) - 1}].content",) * len(items)
    call = Call(
        segmentation,
        items,
        params,
        source.data,
        source.param,
        source.declared_type,
        wording,
        image_url=source.url,
    )
    return ChatCall(request, call)


def _hinted(error: ApiError) -> ApiError:
    """The error, with the successor of a parameter that vLLM had."""
    if error.code == "unknown_parameter" and error.param in _SUCCEEDED:
        where = "where the operator enables client grammars"
        error.message = (
            f"unknown parameter {error.param}: its successor is {_SUCCEEDED[error.param]}, {where}"
        )
    return error


def _client_grammar(request: ChatRequest, settings: Settings) -> ClientGrammar | None:
    """A grammar that the client brings.

    Raises ApiError: 400 parameter_not_allowed unless the operator allows them; 422 grammar_rejected
    for a large one.
    """
    grammar, param = _brought(request)
    if grammar is None:
        return None
    if not settings.client_grammars:
        message = "this server does not let clients bring grammars"
        raise ApiError(400, "parameter_not_allowed", message, param=param)
    if len(json.dumps(grammar.value)) > MAX_GRAMMAR_BYTES:
        message = f"a grammar may have at most {MAX_GRAMMAR_BYTES} bytes"
        raise ApiError(422, "grammar_rejected", message, param=param)
    return grammar


def _brought(request: ChatRequest) -> tuple[ClientGrammar | None, str]:
    shape = request.response_format
    if isinstance(shape, JsonSchemaFormat):
        return ClientGrammar("json", shape.json_schema.schema_), "response_format"
    if isinstance(shape, JsonObjectFormat):
        return ClientGrammar("json_object", True), "response_format"
    if request.structured_outputs is not None:
        [(kind, value)] = request.structured_outputs.given().items()
        return ClientGrammar(cast(GrammarKind, kind), value), "structured_outputs"
    return None, ""


def _check_count(request: ChatRequest, settings: Settings) -> None:
    if (request.n or 1) > settings.max_prompts:
        message = f"must be at most {settings.max_prompts}"
        raise ApiError(422, "value_out_of_range", message, param="n")


def _turns(messages: Sequence[Message], settings: Settings) -> list[Turn]:
    """The conversation without the image itself. Raises ApiError 422 prompt_too_long."""
    turns = [_turn(message) for message in messages]
    if sum(len(turn.text.encode()) for turn in turns) > settings.max_chat_bytes:
        text = f"the texts of a conversation may have at most {settings.max_chat_bytes} bytes"
        raise ApiError(422, "prompt_too_long", text, param="messages")
    return turns


def _turn(message: Message) -> Turn:
    has_image = any(True for _ in _images(message))
    role = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str):
        return Turn(role, message.content)
    texts = [part.text for part in message.content if isinstance(part, TextPart)]
    return Turn(role, "\n".join(texts), has_image)


def _images(message: Message) -> Iterator[tuple[int, ImagePart]]:
    """The images of a message, each with its place."""
    if isinstance(message, UserMessage) and not isinstance(message.content, str):
        for place, part in enumerate(message.content):
            if isinstance(part, ImagePart):
                yield place, part


def _only_image(messages: Sequence[Message]) -> tuple[ImagePart, str]:
    """The image and its field. Raises ApiError 400 image_missing or 422 too_many_images."""
    found = [
        (part, f"messages[{index}].content[{place}].image_url.url")
        for index, message in enumerate(messages)
        for place, part in _images(message)
    ]
    if not found:
        raise ApiError(400, "image_missing", "give an image in a user message", param="messages")
    if len(found) > 1:
        message = "the model reads one image in a conversation"
        raise ApiError(422, "too_many_images", message, param=found[1][1])
    return found[0]


def _meaning(question: str, request: ChatRequest) -> tuple[Target, str]:
    """What is answered with, and the phrase that names the object. Under a grammar of the client's
    an answer may be anything."""
    target, phrase = match_instruction(question) or ("text", question)
    if isinstance(request.response_format, PolygonFormat):
        target = "region"
    is_shaped = isinstance(request.response_format, None | TextFormat | PolygonFormat)
    return (target if is_shaped and request.structured_outputs is None else "text"), phrase


def _segmentation(request: ChatRequest, target: Target, phrase: str) -> SegmentRequest:
    """The same wishes in the words of ``POST /segment``."""
    shape = request.response_format
    polygons = shape if isinstance(shape, PolygonFormat) else None
    return SegmentRequest.model_validate(
        {
            "model": request.model,
            "prompts": [PromptItem(text=phrase)] * (request.n or 1),
            "task": target,
            "return": polygons.outputs if polygons else None,
            "coordinates": polygons.coordinates if polygons else "normalized",
            "max_points": polygons.max_points if polygons else None,
            "max_tokens": request.max_tokens or request.max_completion_tokens,
            "temperature": request.temperature or 0.0,
            "seed": None if request.seed is None else request.seed % (MAX_SEED + 1),
            "deadline_ms": request.deadline_ms,
        }
    )
