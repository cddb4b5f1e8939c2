"""``/v1/images``: keep an image for later prompts."""

from typing import Any

from fastapi import APIRouter, Request

from simpleseg.schema import DeletedImage, ErrorResponse, UploadedImage
from simpleseg_server.routes.segment import read_request_body, unless_disconnected
from simpleseg_server.services import owner_of, services_of

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 408, 413, 415, 422, 503)
}
_NOT_FOUND: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (404, 422)
}
router = APIRouter(prefix="/v1/images")

_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": {"$ref": "#/components/schemas/UploadRequest"}},
        "multipart/form-data": {"schema": {"$ref": "#/components/schemas/UploadForm"}},
    },
}


@router.post("", summary="Keep an image", responses=_ERRORS, openapi_extra={"requestBody": _BODY})
async def upload(request: Request) -> UploadedImage:
    """Decode an image and keep it for a while: `{"image": {"id": ...}}` then stands for it in a
    request. It can be used with the API key that brought it, and only on this server."""
    services = services_of(request)
    services.keeper.require_ready()
    with services.segmenter.admission.enter(owner_of(request)):
        body = await read_request_body(request, services.settings.body_timeout_s)
        work = services.segmenter.keep(
            body,
            request.headers.get("content-type", ""),
            owner_of(request),
            request.state.times,
        )
        stored = await unless_disconnected(request, work)
    return stored.info()


@router.get("/{image_id}", summary="A kept image's size and end", responses=_NOT_FOUND)
async def describe(request: Request, image_id: str) -> UploadedImage:
    return services_of(request).images.find(image_id, owner_of(request), "image_id").info()


@router.delete("/{image_id}", summary="Forget a kept image", responses=_NOT_FOUND)
async def forget(request: Request, image_id: str) -> DeletedImage:
    services_of(request).images.remove(image_id, owner_of(request))
    return DeletedImage(id=image_id, object="image", deleted=True)
