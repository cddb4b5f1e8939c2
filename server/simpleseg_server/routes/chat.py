"""``POST /v1/chat/completions``, for clients of OpenAI's chat."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from simpleseg.chat_answer_schema import ChatChunk, ChatCompletion
from simpleseg.schema import ErrorResponse
from simpleseg_server.chat_answers import Chat
from simpleseg_server.chat_calls import ChatCall, read_chat
from simpleseg_server.engines.base import ClientGrammar
from simpleseg_server.errors import ApiError
from simpleseg_server.routes.segment import (
    ENDS,
    event_stream_of,
    first_of,
    last_words,
    read_request_body,
    unless_disconnected,
)
from simpleseg_server.services import Services, owner_of, services_of
from simpleseg_server.sse import DONE, encode, event_stream

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 404, 408, 413, 415, 422, 503)
}
router = APIRouter(responses=_ERRORS)

REQUEST_BODY = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ChatRequest"}}},
}


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    summary="Ask about an image, as OpenAI's chat does",
    openapi_extra={"requestBody": REQUEST_BODY},
    responses={200: {"content": event_stream(model="ChatChunk")}},
)
async def chat_completions(request: Request) -> Response:
    """Answer a conversation about one image; any OpenAI client works.

    Where the last message is an instruction that the model was trained on, such as `Output the
    polygon coordinates of the left dog in the image.`, the answer keeps to its grammar, and
    `message.segmentation` has what `POST /segment` gives for the phrase; with the `response_format`
    `{"type": "simpleseg_polygons"}` it does so for any text. `message.content` is the model's text
    to the letter. A stream ends each choice with `delta.segmentation` beside the finish reason.

    `temperature` is 0 unless given. Parameters of OpenAI's that are not served are 400
    `unsupported_value` unless they ask for what happens anyway; all others are 400
    `unknown_parameter`.
    """
    services = services_of(request)
    services.keeper.require_ready()
    async with AsyncExitStack() as held:
        ticket = held.enter_context(services.segmenter.admission.enter(owner_of(request)))
        chat = await _prepare(request)
        if chat.request.stream:
            chunks = chat.stream()
            held.push_async_callback(chunks.aclose)
            coming = await first_of(request, chunks, held)
            ticket.pin()  # its answer has begun
            sent = _encoded(request, coming, chunks)
            return event_stream_of(request, sent, held.pop_all())
        completion = await unless_disconnected(request, chat.complete())
    with request.state.times.measure("encode"):
        text = completion.model_dump_json(exclude_unset=True)
    return Response(text, media_type="application/json")


async def _prepare(request: Request) -> Chat:
    services = services_of(request)
    body = await read_request_body(request, services.settings.body_timeout_s)
    return await unless_disconnected(request, _chat(request, body))


async def _chat(request: Request, body: bytes) -> Chat:
    """Everything that can be refused, before the engine has work. Raises ApiError."""
    services, times = services_of(request), request.state.times
    segmenter = services.segmenter
    content_type = request.headers.get("content-type", "")
    with times.measure("read_body"):
        asked: ChatCall = await segmenter.work(read_chat, body, content_type, services.settings)
    if asked.request.logprobs and not segmenter.engine.capabilities.logprobs:
        message = "the engine gives no log-probabilities"
        raise ApiError(400, "unsupported_value", message, param="logprobs")
    if asked.call.wording is not None and asked.call.wording.client_grammar is not None:
        name = "response_format" if asked.request.response_format else "structured_outputs"
        await _judge(services, asked.call.wording.client_grammar, name)
    try:
        job = await segmenter.job(asked.call, request.state.request_id, times)
    except ApiError as error:
        error.param = asked.own_param(error.param)
        raise
    return Chat.of(asked.request, job, segmenter)


async def _judge(services: Services, grammar: ClientGrammar, param: str) -> None:
    """Refuse a client's grammar that the engine does not take, or that does not compile in time."""
    if not services.segmenter.engine.capabilities.client_grammars:
        message = "the engine takes no grammars of clients"
        raise ApiError(400, "parameter_not_allowed", message, param=param)
    if not await services.grammars.allows(grammar):
        message = "this grammar cannot be compiled, or not in time"
        raise ApiError(422, "grammar_rejected", message, param=param)


async def _encoded(
    request: Request, coming: asyncio.Future[ChatChunk], rest: AsyncIterator[ChatChunk]
) -> AsyncGenerator[bytes, None]:
    """The stream as bytes: chunks, perhaps an error that came on the way, and the end mark."""
    try:
        yield encode(await coming)
        async for chunk in rest:
            yield encode(chunk)
    except ENDS as error:
        # Without an event name, as OpenAI's clients look for it.
        yield encode(last_words(request, error))
    yield DONE
