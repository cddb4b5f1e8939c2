"""``POST /segment``."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from typing import Any, TypeVar, cast

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from simpleseg.schema import ErrorResponse, SegmentResponse, StreamEvent
from simpleseg_server.admission import current_ticket
from simpleseg_server.body import time_for
from simpleseg_server.errors import ApiError, ClientGone, body_timeout, draining, error_body
from simpleseg_server.jobs import Job
from simpleseg_server.middleware import CLIENT_CLOSED, DRAINED
from simpleseg_server.services import owner_of, services_of
from simpleseg_server.sse import DONE, EventStream, encode, event_stream

T = TypeVar("T")

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 404, 408, 413, 415, 422, 503)
}
router = APIRouter(responses=_ERRORS)

EVENTS = event_stream(
    "segmentation.created",
    "segmentation.points.delta",
    "segmentation.polygon.done",
    "segmentation.result.done",
    "segmentation.completed",
    "error",
    model="StreamEvent",
)
REQUEST_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": {"$ref": "#/components/schemas/SegmentRequest"}},
        "multipart/form-data": {"schema": {"$ref": "#/components/schemas/SegmentForm"}},
    },
}


@router.post("/v1/segment", response_model=SegmentResponse, include_in_schema=False)
@router.post(
    "/segment",
    response_model=SegmentResponse,
    summary="Segment the objects that the prompts name",
    openapi_extra={"requestBody": REQUEST_BODY},
    responses={200: {"content": EVENTS}},
)
async def segment(request: Request) -> Response:
    """Find each prompt's object in one image: polygons, box, mask, score and status.

    Prompts run side by side. Where the engine fails on some of them, their results are `invalid`
    with a warning; where it fails on all, the answer is 503. With `stream` the answer is
    server-sent events: `segmentation.created`, `segmentation.points.delta` (whole vertices only,
    never taken back, whatever `return` names), `segmentation.polygon.done`,
    `segmentation.result.done` and `segmentation.completed` with the plain answer, then `[DONE]`.
    """
    services = services_of(request)
    services.keeper.require_ready()
    async with AsyncExitStack() as held:
        ticket = held.enter_context(services.segmenter.admission.enter(owner_of(request)))
        job = await _job(request)
        if job.call.request.stream:
            events = services.segmenter.stream(job)
            held.push_async_callback(events.aclose)
            created = await anext(events)
            coming = await first_of(request, events, held)
            ticket.pin()  # its answer has begun
            chunks = _chunks(request, created, coming, events)
            return event_stream_of(request, chunks, held.pop_all())
        response = await unless_disconnected(request, services.segmenter.run(job))
    with request.state.times.measure("encode"):
        text = response.model_dump_json(exclude_unset=True)
    return Response(text, media_type="application/json")


async def _job(request: Request) -> Job:
    services = services_of(request)
    body = await read_request_body(request, services.settings.body_timeout_s)
    work = services.segmenter.prepare(
        body,
        request.headers.get("content-type", ""),
        request.state.request_id,
        request.state.times,
        owner_of(request),
    )
    return await unless_disconnected(request, work)


async def first_of(
    request: Request, events: AsyncGenerator[T, None], held: AsyncExitStack
) -> asyncio.Future[T]:
    """The first event, which may still be coming: what fails at once has a status of its own, and
    no client waits longer for the headers than for any other sign of life. ``held`` ends it."""
    coming = asyncio.ensure_future(anext(events))
    held.push_async_callback(_ended, coming)
    patience_s = services_of(request).settings.keep_alive_s
    await unless_disconnected(request, asyncio.wait({coming}, timeout=patience_s))
    if coming.done():
        coming.result()
    return coming


async def _ended(task: asyncio.Future[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _chunks(
    request: Request,
    created: StreamEvent,
    coming: asyncio.Future[StreamEvent],
    rest: AsyncIterator[StreamEvent],
) -> AsyncGenerator[bytes, None]:
    """The stream as bytes: events, perhaps an error that came on the way, and the end mark."""
    try:
        yield encode(created, created.type)
        first = await coming
        yield encode(first, first.type)
        async for event in rest:
            yield encode(event, event.type)
    except ENDS as error:
        yield encode(last_words(request, error), "error")
    yield DONE


def event_stream_of(
    request: Request, chunks: AsyncGenerator[bytes, None], held: AsyncExitStack
) -> EventStream:
    services = services_of(request)
    return EventStream(chunks, held, services.settings.keep_alive_s, services.keeper.over)


ENDS = (ApiError, GeneratorExit, asyncio.CancelledError)
"""What a stream may end with before its time."""


def last_words(request: Request, error: BaseException) -> ErrorResponse:
    """The last event of a stream that ends with one of ``ENDS``, for metrics and the log too.
    Raises the error again where its client has left, which is counted."""
    services = services_of(request)
    if DRAINED in error.args:
        error = draining(services.settings.retry_after_s)
    if not isinstance(error, ApiError):
        services.metrics.disconnects.inc()
        request.state.ended = CLIENT_CLOSED
        raise error
    services.metrics.rejections.labels(error.code).inc()
    request.state.ended = error.status
    return error_body(error, request.state.request_id)


async def read_request_body(request: Request, timeout_s: float) -> bytes:
    """The whole body. Raises ApiError 408 body_timeout or 415 encoding_unsupported."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise ApiError(415, "encoding_unsupported", "compressed request bodies are not read")
    known: bytes | None = getattr(request.state, "body", None)
    if known is not None:
        return known
    try:
        request.state.body = await _body(request, timeout_s)
    except TimeoutError:
        raise body_timeout() from None
    except ClientDisconnect:
        raise ClientGone from None
    return cast(bytes, request.state.body)


async def _body(request: Request, timeout_s: float) -> bytes:
    """Every byte that comes puts the deadline off, up to the last one."""
    began, ticket = asyncio.get_running_loop().time(), current_ticket()
    chunks, received = [], 0
    async with asyncio.timeout(time_for(0, timeout_s)) as limit:
        async for chunk in request.stream():
            chunks.append(chunk)
            received += len(chunk)
            limit.reschedule(began + time_for(received, timeout_s))
            if ticket is not None:
                ticket.heard()
    if ticket is not None:
        ticket.heard(is_all=True)
    return b"".join(chunks)


async def unless_disconnected(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``; cancels it and raises ClientGone where the client hangs up first.

    The request's body must have been read: what ``receive`` then gives is only the disconnect.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
