"""The application: routes, error shape and life cycle around one engine."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Match

from simpleseg import __version__
from simpleseg_server.auth import PROBES, Credentials, KeyGuard
from simpleseg_server.config import Settings
from simpleseg_server.door import Door
from simpleseg_server.engines.base import Engine
from simpleseg_server.errors import ApiError, ClientGone, from_http_exception, render
from simpleseg_server.fetch import Network
from simpleseg_server.keeper import EngineKeeper
from simpleseg_server.middleware import CLIENT_CLOSED, BodyLimit, RequestContext
from simpleseg_server.openapi import describe
from simpleseg_server.routes import batch, chat, compat, images, operations, segment, tokenize
from simpleseg_server.routes.playground import open_paths, playground_router
from simpleseg_server.services import Services
from simpleseg_server.telemetry import Metrics
from simpleseg_server.tracing import Tracer, Tracing


def _stay() -> None:
    """Keep serving probes after the engine failed to start."""


def create_app(
    settings: Settings,
    engine: Engine,
    *,
    on_engine_failure: Callable[[], None] = _stay,
    tracer: Tracer | None = None,
    network: Network | None = None,
) -> FastAPI:
    """The server as an ASGI application. Its lifespan starts and closes the engine.

    The engine loads in the background: until it is ready, ``/readyz`` and ``/segment`` answer 503.
    Where it cannot start, ``on_engine_failure`` is called and ``/livez`` answers 503. Without
    ``tracer`` the settings say whether there is one. ``network`` stands for the world that images
    are fetched from. Raises ConfigError.
    """
    tracer = tracer or Tracer.of(settings)
    metrics = Metrics()
    workers = ThreadPoolExecutor(settings.worker_threads, thread_name_prefix="simpleseg-worker")
    keeper = EngineKeeper(engine, metrics, settings.retry_after_s, on_engine_failure)
    services = Services(settings, keeper, metrics, workers, network)
    grammars, credentials = services.grammars, credentials_of(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        services.intake.start()  # first, while there is little that takes its time
        keeper.open()
        try:
            yield
        finally:
            await keeper.close()
            await grammars.close()
            services.close_workers()
            if tracer is not None:
                await asyncio.to_thread(tracer.close)

    app = FastAPI(
        title="SimpleSeg server",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
        middleware=surroundings(settings, metrics, credentials, tracer),
        exception_handlers=ERROR_HANDLERS,
    )
    app.state.services = services
    for router in compat.routers(settings.enable):
        app.include_router(router)  # first: some of their paths are ours too
    app.include_router(segment.router)
    app.include_router(batch.router)
    app.include_router(images.router)
    app.include_router(chat.router)
    app.include_router(tokenize.router)
    app.include_router(operations.router)
    app.include_router(operations.models_router)
    if settings.playground:
        app.include_router(playground_router(settings))
    build = app.build_middleware_stack
    app.build_middleware_stack = lambda: Door(build(), services, credentials)  # type: ignore[method-assign]
    app.openapi = cache(lambda: describe(app, settings))  # type: ignore[method-assign]
    return app


def credentials_of(settings: Settings) -> Credentials:
    """Who may come in. Raises ConfigError for a bad file of keys."""
    return Credentials(settings, {*settings.open_paths, *open_paths(settings)})


def surroundings(
    settings: Settings, metrics: Metrics, credentials: Credentials, tracer: Tracer | None = None
) -> list[Middleware]:
    """What surrounds the routes, the outermost first."""
    return [
        Middleware(RequestContext, metrics=metrics, retry_after_s=settings.retry_after_s),
        Middleware(Tracing, tracer=tracer, untraced=PROBES | {"/metrics"}),
        Middleware(
            KeyGuard,
            credentials=credentials,
            metrics=metrics,
            retry_after_s=settings.retry_after_s,
        ),
        Middleware(BodyLimit, metrics=metrics, max_body_bytes=settings.max_body_bytes),
    ]


async def _on_error(request: Request, error: Exception) -> Response:
    """Every refusal in the one shape."""
    headers = None
    if isinstance(error, HTTPException):
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_methods_here(request))
            if request.method == "OPTIONS":
                return Response(status_code=204, headers=headers)
        error = from_http_exception(error)
    assert isinstance(error, ApiError)
    request.app.state.services.metrics.rejections.labels(error.code).inc()
    return render(error, request.state.request_id, headers)


def _methods_here(request: Request) -> list[str]:
    """What all routes of a path answer, where the framework names those of the first one."""

    def is_answered(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    methods = [
        method for method in ("GET", "POST", "PUT", "PATCH", "DELETE") if is_answered(method)
    ]
    return [*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"]


async def _on_client_gone(request: Request, _: Exception) -> Response:
    request.app.state.services.metrics.disconnects.inc()
    return Response(status_code=CLIENT_CLOSED)


ERROR_HANDLERS: dict[Any, Any] = {
    ApiError: _on_error,
    HTTPException: _on_error,
    ClientGone: _on_client_gone,
}


def create_ops_app(services: Services) -> FastAPI:
    """Probes, version and metrics of the same server, for a listener that asks for no keys."""
    app = FastAPI(
        redirect_slashes=False,
        openapi_url=None,
        middleware=[
            Middleware(RequestContext, metrics=services.metrics),
            Middleware(BodyLimit, metrics=services.metrics, max_body_bytes=0),
        ],
        exception_handlers=ERROR_HANDLERS,
    )
    app.state.services = services
    app.include_router(operations.router)
    return app
