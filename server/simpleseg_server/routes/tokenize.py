"""``POST /tokenize``: what a text costs."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError

from simpleseg.schema import ErrorResponse, TokenizeRequest, Tokens
from simpleseg_server.body import read_json_body
from simpleseg_server.config import Settings
from simpleseg_server.engines.base import TokenizingEngine
from simpleseg_server.errors import ApiError, from_validation_error, model_not_found
from simpleseg_server.routes.segment import read_request_body
from simpleseg_server.services import owner_of, services_of

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 404, 408, 413, 415, 422, 503)
}
router = APIRouter(responses=_ERRORS)

_BODY = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/TokenizeRequest"}}},
}


@router.post("/tokenize", summary="A text as tokens", openapi_extra={"requestBody": _BODY})
async def tokenize(request: Request) -> Tokens:
    """The tokens of a text, as the model's prompt holds them. The remote engine leaves the
    tokenizer to its upstreams: 422 `tokenizer_unavailable`."""
    services = services_of(request)
    services.keeper.require_ready()
    segmenter, engine = services.segmenter, services.keeper.engine
    with segmenter.admission.enter(owner_of(request)):
        body = await read_request_body(request, services.settings.body_timeout_s)
        content_type = request.headers.get("content-type", "")
        asked = await segmenter.work(_read, body, content_type, services.settings)
        capabilities = engine.capabilities
        if asked.model not in (None, *capabilities.models):
            raise model_not_found("model")
        if not isinstance(engine, TokenizingEngine):
            raise ApiError(422, "tokenizer_unavailable", "the engine has no tokenizer of its own")
        tokens = await segmenter.work(engine.tokenize, asked.prompt)
    return Tokens(
        object="tokens",
        model=asked.model or capabilities.model,
        count=len(tokens),
        tokens=tokens,
        max_tokens=min(services.settings.max_tokens, capabilities.max_tokens),
    )


def _read(data: bytes, content_type: str, settings: Settings) -> TokenizeRequest:
    try:
        request = TokenizeRequest.model_validate(read_json_body(data, content_type))
    except ValidationError as error:
        raise from_validation_error(error) from None
    if len(request.prompt.encode()) > settings.max_chat_bytes:
        message = f"a text may have at most {settings.max_chat_bytes} bytes"
        raise ApiError(422, "prompt_too_long", message, param="prompt")
    return request
