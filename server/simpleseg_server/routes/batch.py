"""``POST /v1/segment/batch``: many segmentation requests in one."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from simpleseg.schema import BatchItem, BatchResponse, ErrorResponse
from simpleseg_server.body import read_json_body
from simpleseg_server.calls import call_of, fields_of_batch
from simpleseg_server.errors import ApiError, ClientGone, error_body, unforeseen
from simpleseg_server.middleware import log_bug
from simpleseg_server.routes.segment import read_request_body, unless_disconnected
from simpleseg_server.services import owner_of, services_of

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 408, 413, 415, 422, 503)
}
router = APIRouter(responses=_ERRORS)

_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": {"$ref": "#/components/schemas/BatchRequest"}},
    },
}


@router.post(
    "/v1/segment/batch",
    response_model=BatchResponse,
    summary="Answer many segmentation requests, each with a status of its own",
    openapi_extra={"requestBody": _BODY},
)
async def batch(request: Request) -> Response:
    """Each of `requests` is what `/segment` takes, without `stream`, and has the status and the
    answer or error that `/segment` would have given. They come back in order."""
    services = services_of(request)
    services.keeper.require_ready()
    segmenter = services.segmenter
    with segmenter.admission.enter(owner_of(request)):
        body = await read_request_body(request, services.settings.body_timeout_s)
        times, content_type = request.state.times, request.headers.get("content-type", "")
        with times.measure("read_body"):
            fields = await segmenter.work(read_json_body, body, content_type)
        items = fields_of_batch(fields, services.settings)
        room = asyncio.Semaphore(segmenter.admission.slots)
        turns = asyncio.Semaphore(services.settings.max_fetches_per_host)

        async def answer(index: int, fields: dict[str, Any]) -> BatchItem:
            request_id = f"{request.state.request_id}-{index}"
            async with room:  # images are decoded when their turn has come
                return await _item(request, index, fields, request_id, turns)

        async def answer_all() -> list[BatchItem]:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(answer(*item)) for item in enumerate(items)]
            return [task.result() for task in tasks]

        results = await unless_disconnected(request, answer_all())
    response = BatchResponse(object="segmentation.batch", results=results)
    with times.measure("encode"):
        text = response.model_dump_json(exclude_unset=True)
    return Response(text, media_type="application/json")


async def _item(
    request: Request,
    index: int,
    fields: dict[str, Any],
    request_id: str,
    turns: asyncio.Semaphore,
) -> BatchItem:
    """``turns`` are those of one batch to fetch images, which it must not be refused for itself."""
    services, times = services_of(request), request.state.times.part("item", index)
    segmenter = services.segmenter
    try:
        with times.measure("read_body"):
            call = await segmenter.work(call_of, fields, services.settings)
        if call.request.stream:
            message = "an item of a batch cannot be streamed"
            raise ApiError(422, "stream_not_applicable", message, param="stream")
        job = await segmenter.job(call, request_id, times, owner_of(request), turns)
        response = await segmenter.run(job)
    except ClientGone:
        raise
    except ApiError as error:
        services.metrics.rejections.labels(error.code).inc()
        failure = error_body(error, request_id).error
        return BatchItem(index=index, status=error.status, error=failure)
    except Exception as error:
        log_bug(error, request_id)  # this item's, and no reason to fail its neighbours
        ours = unforeseen(error, services.settings.retry_after_s)
        failure = error_body(ours, request_id).error
        return BatchItem(index=index, status=ours.status, error=failure)
    return BatchItem(index=index, status=200, response=response)
