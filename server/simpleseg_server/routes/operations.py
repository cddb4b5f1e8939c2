"""Probes, the model list and metrics."""

import time

from fastapi import APIRouter, Request
from starlette.responses import Response

from simpleseg.schema import ErrorResponse, Health, ModelInfo, ModelList
from simpleseg_server.services import services_of

router = APIRouter(responses={503: {"model": ErrorResponse}})
_STARTED = int(time.time())


@router.get("/livez", summary="Answers 200 unless only a restart helps")
async def livez(request: Request) -> Health:
    return services_of(request).keeper.require_alive()


@router.get("/readyz", summary="Answers 200 once requests can be answered")
async def readyz(request: Request) -> Health:
    return services_of(request).keeper.require_ready()


@router.get("/health", summary="The same as /readyz")
async def health(request: Request) -> Health:
    return services_of(request).keeper.require_ready()


@router.get("/v1/models", summary="The served model, in the shape of OpenAI's list")
async def models(request: Request) -> ModelList:
    keeper = services_of(request).keeper
    keeper.require_ready()
    capabilities = keeper.engine.capabilities
    model = ModelInfo(
        id=capabilities.model,
        created=_STARTED,
        owned_by="simpleseg",
        capabilities=["segment"],
        tasks=list(capabilities.targets),
    )
    return ModelList(data=[model])


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    text, content_type = services_of(request).metrics.exposition()
    return Response(text, headers={"Content-Type": content_type})
