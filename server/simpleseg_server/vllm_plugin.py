"""``POST /segment`` in vLLM's own server, beside its routes: an endpoint plugin of vLLM.

vLLM (0.26 or newer) loads it by its entry point where it is named::

    VLLM_PLUGINS=simpleseg vllm serve path/to/checkpoint

The routes, limits and errors are those of ``simpleseg serve``, and its settings come from the same
variables; vLLM's own routes stay as they are. A key that vLLM asks for is asked for here too. The
server is ready once an answer of every task was given, and does not start where that fails.
"""

import os
from argparse import Namespace
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from copy import copy
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from prometheus_client import REGISTRY, CollectorRegistry
from starlette.middleware import Middleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp

from simpleseg.schema import SegmentRequest
from simpleseg_server.app import ERROR_HANDLERS, credentials_of, surroundings
from simpleseg_server.config import ConfigError, Settings
from simpleseg_server.engines.base import Engine
from simpleseg_server.keeper import EngineKeeper
from simpleseg_server.openapi import add_schemas
from simpleseg_server.routes import segment
from simpleseg_server.services import Services
from simpleseg_server.sources import load
from simpleseg_server.telemetry import Metrics


def engine_on(client: Any) -> Engine:
    """An engine on a vLLM that another server started and will stop (an ``EngineClient``)."""
    from simpleseg_server.engines.vllm import VllmEngine
    from simpleseg_server.engines.vllm_compat import VllmBackend, model_and_options

    model, options = model_and_options(client)

    def start(launch: Any) -> VllmBackend:
        return VllmBackend(client, launch, is_owner=False)

    return VllmEngine(model, options, start_backend=start)


class SegmentPlugin:
    """vLLM's protocol of an endpoint plugin (``vllm.plugins.endpoint_plugins.interface``).

    Our metrics join vLLM's in ``registry``, which its ``/metrics`` shows.
    """

    name = "simpleseg"
    required_tasks = ("generate",)

    def __init__(
        self,
        make_engine: Callable[[Any], Engine] = engine_on,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._make_engine = make_engine
        self._registry = registry
        self._routes: list[APIRoute] = []
        self._services: Services | None = None

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes. Raises ConfigError for an unknown setting."""
        self._settings = _settings(app.state.args)
        self._routes = [copy(r) for r in segment.router.routes if isinstance(r, APIRoute)]
        app.router.routes += self._routes
        app.router.lifespan_context = self._closing(app.router.lifespan_context)
        describe = app.openapi
        # Only what is added: vLLM has schemas by the names of the chat's.
        app.openapi = lambda: add_schemas(describe(), self._settings, SegmentRequest)  # type: ignore[method-assign]

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Start the engine on vLLM's client. Raises RuntimeError where it cannot serve."""
        settings, metrics = self._settings, Metrics(self._registry)
        engine = self._make_engine(engine_client)
        keeper = EngineKeeper(engine, metrics, settings.retry_after_s, lambda: None)
        workers = ThreadPoolExecutor(settings.worker_threads, thread_name_prefix="simpleseg-worker")
        services = Services(settings, keeper, metrics, workers)
        state.services = self._services = services
        around = surroundings(settings, metrics, credentials_of(settings))
        for route in self._routes:
            route.app = _within(around, route.app)
        services.intake.start()
        keeper.open()
        await keeper.settled()
        if keeper.health().status != "ready":
            await self._close()
            raise RuntimeError("simpleseg cannot serve this model: see the log above")

    def _closing(self, around: Any) -> Any:
        """The application's lifespan, and ours within it."""

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
            async with around(app) as state:
                try:
                    yield state
                finally:
                    await self._close()

        return lifespan

    async def _close(self) -> None:
        if self._services is not None:
            await self._services.keeper.close()
            self._services.close_workers()


def _settings(args: Namespace) -> Settings:
    """From the environment; the keys are those that vLLM guards its ``/v1`` routes with."""
    keys = args.api_key or [os.environ.get("VLLM_API_KEY")]
    options = {"api_keys": [key for key in keys if key] or None}
    settings = load(os.environ, options=options).settings
    if settings.enable:
        raise ConfigError("enable: other tools are served by `simpleseg serve` only")
    return settings


def _within(around: list[Middleware], app: ASGIApp) -> ASGIApp:
    """A route with everything around it that our own application has around all of them."""
    app = ExceptionMiddleware(app, handlers=ERROR_HANDLERS)
    for middleware in reversed(around):
        app = middleware.cls(app, *middleware.args, **middleware.kwargs)
    return app
