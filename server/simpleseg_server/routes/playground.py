"""The playground: the page at ``/``, its files, and what only the page asks for.

The files and ``config.json`` need no API key, for they hold no secrets: a browser that opens an
address sends none. Everything that does work or shows data needs it, as everywhere.
"""

import json
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import Response

from simpleseg import __version__
from simpleseg_server.body import read_json_body
from simpleseg_server.config import Settings
from simpleseg_server.errors import ApiError, from_validation_error
from simpleseg_server.playground.assets import HEADERS, PREFIX, Asset, assets
from simpleseg_server.playground.exports import Exported, ExportRequest, export
from simpleseg_server.routes.segment import read_request_body, unless_disconnected
from simpleseg_server.services import owner_of, services_of

CONFIG = f"{PREFIX}config.json"
_INERT = {**HEADERS, "Content-Security-Policy": "default-src 'none'; sandbox"}
"""Headers of what a client brought: never run, nor taken for a page."""


def open_paths(settings: Settings) -> frozenset[str]:
    """The paths of the page that need no key; none where it is switched off."""
    return frozenset({*assets(), CONFIG}) if settings.playground else frozenset()


def playground_router(settings: Settings) -> APIRouter:
    """The routes of the page, none of them part of the documented API."""
    router = APIRouter(include_in_schema=False)
    served = {**assets(), CONFIG: _config(settings)}

    async def asset(request: Request) -> Response:
        found = served[request.scope["route"].path]
        return found.response(request.headers.get("if-none-match", ""))

    for path in served:
        router.add_api_route(path, asset, methods=["GET", "HEAD"])
    router.add_api_route(f"{PREFIX}images/{{image_id}}", _picture, methods=["GET"])
    router.add_api_route(f"{PREFIX}export", _export, methods=["POST"])
    return router


def _config(settings: Settings) -> Asset:
    """What the page must know of this server before it has a key."""
    values = {
        "version": __version__,
        "needs_key": settings.has_keys,
        "max_prompts": settings.max_prompts,
        "max_image_bytes": settings.max_image_bytes,
    }
    return Asset.of(json.dumps(values).encode(), "application/json")


async def _picture(request: Request, image_id: str) -> Response:
    """The file of a kept image, to its owner: the page cannot show what the server fetched from a
    URL in any other way, since it may load nothing from elsewhere."""
    stored = services_of(request).images.find(image_id, owner_of(request), "image_id")
    return Response(stored.data, headers=_INERT, media_type="application/octet-stream")


async def _export(request: Request) -> Response:
    """Corrected regions as a file of another tool."""
    services = services_of(request)
    services.keeper.require_ready()
    with services.segmenter.admission.enter(owner_of(request)):
        body = await read_request_body(request, services.settings.body_timeout_s)
        content_type = request.headers.get("content-type", "")
        work = services.segmenter.work(_written, body, content_type, services.settings)
        file = await unless_disconnected(request, work)
    return Response(file.content, headers=_INERT, media_type=file.media_type)


def _written(body: bytes, content_type: str, settings: Settings) -> Exported:
    """The file that a body asks for. Raises ApiError."""
    fields: dict[str, Any] = read_json_body(body, content_type)
    try:
        wanted = ExportRequest.model_validate(fields)
    except ValidationError as error:
        raise from_validation_error(error) from None
    if wanted.width * wanted.height > settings.max_image_pixels:
        message = f"an image may have at most {settings.max_image_pixels} pixels"
        raise ApiError(422, "image_too_many_pixels", message, param="width")
    return export(wanted)
