"""The Serve application: ``serve run`` and Serve's configuration files name ``build``."""

from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from simpleseg_server.app import create_app
from simpleseg_server.config import Settings
from simpleseg_server.engines.base import Engine
from simpleseg_server.logs import set_up
from simpleseg_server.ray_serve.front import ReplicatedEngine
from simpleseg_server.ray_serve.replica import EngineFactory, EngineReplica

ENGINES, FRONT_ENDS = "engines", "front-ends"
UNDER_WAY = 8
"""Requests that a replica works on together where the settings do not say."""
BACKLOG = 2
"""Times as many may be at a replica, so that it never waits for the next one."""


class Plan(BaseModel):
    """The ``args`` of the configuration file.

    ``settings`` are those of ``simpleseg serve``; where to listen is Serve's own matter.
    ``max_engines`` above ``min_engines`` lets their number follow the queue. ``engine_gpus`` and
    ``engine_cpus`` are what Ray sets aside for a replica. ``revision`` is anything: another one
    replaces all replicas, one after the other; ``surge_percent`` of the engines more may be there
    meanwhile, for which the cluster needs room. A single engine should have 100.

    >>> Plan(max_engines=4).min_engines
    1
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: dict[str, Any] = {}
    front_ends: PositiveInt = 1
    min_engines: PositiveInt = 1
    max_engines: PositiveInt = 1
    engine_cpus: float = 1.0
    engine_gpus: float = 0.0
    surge_percent: Annotated[int, Field(ge=0, le=100)] = 0
    revision: str = ""


def build(plan: Plan) -> Application:
    """Front ends that share replicas of the engine that the settings name."""
    return application(plan, build_engine)


def application(plan: Plan, make: EngineFactory) -> Application:
    """The same with engines made by ``make``, which Ray pickles."""
    settings = Settings(**plan.settings)
    under_way = settings.max_batch or UNDER_WAY
    engines = serve.deployment(
        _Engines,
        name=ENGINES,
        ray_actor_options={"num_cpus": plan.engine_cpus, "num_gpus": plan.engine_gpus},
        max_ongoing_requests=BACKLOG * under_way,
        graceful_shutdown_timeout_s=settings.max_deadline_ms / 1e3,
        health_check_period_s=2.0,
        max_surge_percent=plan.surge_percent,
        request_router_config=RequestRouterConfig(
            request_router_class="ray.serve.experimental.consistent_hash_router.ConsistentHashRouter",
            request_router_kwargs={"num_fallback_replicas": plan.max_engines},
        ),
        **_numbers(plan, under_way),
    )
    front_ends = serve.deployment(
        _FrontEnd,
        name=FRONT_ENDS,
        num_replicas=plan.front_ends,
        ray_actor_options={"num_cpus": 0.0},
        # The server's own queue refuses what is too much, with the answer that clients know.
        max_ongoing_requests=100_000,
        graceful_shutdown_timeout_s=settings.max_deadline_ms / 1e3,
        health_check_period_s=2.0,
        max_surge_percent=100,
    )
    handle = engines.bind(settings, make, plan.revision)
    most = BACKLOG * under_way * max(plan.min_engines, plan.max_engines)
    return front_ends.bind(settings, handle, most, plan.revision)


def _numbers(plan: Plan, under_way: int) -> dict[str, Any]:
    if plan.max_engines <= plan.min_engines:
        return {"num_replicas": plan.min_engines}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=plan.min_engines,
            max_replicas=plan.max_engines,
            target_ongoing_requests=under_way,  # those that wait at front ends count
        )
    }


class _Engines(EngineReplica):
    async def __init__(  # type: ignore[misc]  # which Serve awaits
        self, settings: Settings, make: EngineFactory, revision: str
    ) -> None:
        super().__init__(settings, make)
        await self.ready()

    async def __del__(self) -> None:
        await self.close()


@serve.ingress()
class _FrontEnd:
    """The server as it is, over a handle in place of an engine."""

    def __init__(
        self, settings: Settings, engines: DeploymentHandle, at_once: int, revision: str
    ) -> None:
        name = serve.get_replica_context().app_name
        self._settings = settings
        self._engine = ReplicatedEngine(engines, at_once, lambda: _is_any_running(name))

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve sends requests here once this has returned: the first ones find it ready."""
        set_up(self._settings.log_format, self._settings.log_level)
        await self._engine.start()
        self._app = create_app(self._settings, self._engine)
        return self._app

    def check_health(self) -> None:
        """Raises ApiError where /livez refuses, since only a restart helps, and Serve makes one.

        A front end whose engines are away is left alone; /readyz tells."""
        self._app.state.services.keeper.require_alive()


def _is_any_running(app_name: str) -> bool:
    states = serve.status().applications[app_name].deployments[ENGINES].replica_states
    return bool(states.get("RUNNING", 0))


def build_engine(settings: Settings) -> Engine:
    """The engine that the settings name, as `simpleseg serve` has it."""
    from simpleseg.cli_support import engine_of

    return engine_of(settings)
