"""Probes, version and metrics, which the listener for operations serves too; and the model list.

The probes never wait for a queue: they tell of the process and the engine, not of the load.
"""

import time

from fastapi import APIRouter, Request
from starlette.responses import Response

from simpleseg import __version__
from simpleseg.schema import ErrorResponse, Health, ModelInfo, ModelList, Version
from simpleseg_polygon.grammar import fingerprint
from simpleseg_server.errors import model_not_found
from simpleseg_server.services import services_of

router = APIRouter(responses={503: {"model": ErrorResponse}})
models_router = APIRouter(responses={503: {"model": ErrorResponse}})
_STARTED = int(time.time())


@router.get("/v1/health/live", summary="The same as /livez, as NVIDIA NIM names it")
@router.get("/livez", summary="Answers 200 unless only a restart helps")
async def livez(request: Request) -> Health:
    return services_of(request).keeper.require_alive()


@router.get("/v1/health/ready", summary="The same as /readyz, as NVIDIA NIM names it")
@router.get("/ping", summary="The same as /readyz")
@router.get("/health", summary="The same as /readyz")
@router.get("/readyz", summary="Answers 200 once requests can be answered")
async def readyz(request: Request) -> Health:
    return services_of(request).keeper.require_open()


@router.get(
    "/version",
    summary="Versions of the server, the model, the engine and the grammars",
)
async def version(request: Request) -> Version:
    health = services_of(request).keeper.health()
    return Version(
        version=__version__, model=health.model, engine=health.engine, grammar=fingerprint()
    )


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    text, content_type = services_of(request).metrics.exposition()
    return Response(text, headers={"Content-Type": content_type})


@models_router.get("/v1/models", summary="The served models, in the shape of OpenAI's list")
async def models(request: Request) -> ModelList:
    return ModelList(data=_served(request))


@models_router.get(
    "/v1/models/{model_id:path}",
    summary="One model, in the shape of OpenAI's",
    responses={status: {"model": ErrorResponse} for status in (404, 422)},
)
async def model(request: Request, model_id: str) -> ModelInfo:
    for served in _served(request):
        if model_id == served.id:
            return served
    raise model_not_found(None)


def _served(request: Request) -> list[ModelInfo]:
    keeper = services_of(request).keeper
    keeper.require_ready()
    capabilities = keeper.engine.capabilities
    return [
        ModelInfo(
            id=name,
            created=_STARTED,
            owned_by="simpleseg",
            parent=None if name == capabilities.model else capabilities.model,
            capabilities=["segment", "chat"],
            tasks=list(capabilities.targets),
        )
        for name in capabilities.models
    ]
