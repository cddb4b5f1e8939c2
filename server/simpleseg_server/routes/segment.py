"""``POST /segment``."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from simpleseg.schema import ErrorResponse, SegmentResponse, StreamEvent
from simpleseg_server.errors import ApiError, ClientGone, error_body
from simpleseg_server.pipeline import Job
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
    never taken back), `segmentation.polygon.done`, `segmentation.result.done` and
    `segmentation.completed` with the plain answer, then `[DONE]`.
    """
    services = services_of(request)
    services.keeper.require_ready()
    async with AsyncExitStack() as held:
        held.enter_context(services.segmenter.admission.enter())
        job = await _job(request)
        if job.call.request.stream:
            events = services.segmenter.stream(job)
            held.push_async_callback(events.aclose)
            # Whatever fails before the first point still has a status of its own.
            first = [await anext(events), await unless_disconnected(request, anext(events))]
            chunks = _chunks(request, first, events)
            return EventStream(chunks, held.pop_all(), services.settings.keep_alive_s)
        response = await unless_disconnected(request, services.segmenter.run(job))
    services.metrics.observe_response(response)
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


async def _chunks(
    request: Request, first: Sequence[StreamEvent], rest: AsyncIterator[StreamEvent]
) -> AsyncGenerator[bytes, None]:
    """The stream as bytes: events, or after its first points perhaps an error, and the end mark."""
    metrics = services_of(request).metrics
    try:
        for event in first:
            yield encode(event, event.type)
        async for event in rest:
            if event.type == "segmentation.completed":
                metrics.observe_response(event.response)
            yield encode(event, event.type)
    except ApiError as error:
        metrics.rejections.labels(error.code).inc()
        yield encode(error_body(error, request.state.request_id), "error")
    yield DONE


async def read_request_body(request: Request, timeout_s: float) -> bytes:
    """The whole body. Raises ApiError 408 body_timeout or 415 encoding_unsupported."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise ApiError(415, "encoding_unsupported", "compressed request bodies are not read")
    try:
        async with asyncio.timeout(timeout_s):
            return await request.body()
    except TimeoutError:
        raise ApiError(408, "body_timeout", "the request body came too slowly") from None
    except ClientDisconnect:
        raise ClientGone from None


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
