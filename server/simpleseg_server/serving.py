"""Sockets and signals: runs an application until it is told to stop.

With ``ops_port`` a second listener serves probes, version and metrics, without keys. It is there
before the main one and until requests under way are done, so that an orchestrator sees a server
that drains: alive, and not ready.
"""

import asyncio
import ipaddress
import math
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from simpleseg_server.app import create_ops_app
from simpleseg_server.config import ConfigError, Settings
from simpleseg_server.logs import set_up
from simpleseg_server.services import Services
from simpleseg_server.telemetry import logger


class _MainServer(uvicorn.Server):
    """Tells the probes that it stops as soon as it is asked to."""

    def __init__(self, config: uvicorn.Config, services: Services) -> None:
        super().__init__(config)
        self._services = services

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._services.keeper.drain()
        await super().shutdown(sockets)


class _OpsServer(uvicorn.Server):
    """Leaves signals to the main server."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run(
    settings: Settings,
    make: Callable[[Callable[[], None]], FastAPI],
    on_failure: Callable[[], None],
) -> None:
    """Serve until a signal, or until the engine cannot start, which calls ``on_failure``.

    ``make`` gives the application; it takes what to call where the engine cannot start. Raises
    ConfigError where an address cannot be listened on.
    """
    set_up(settings.log_format, settings.log_level)
    # A dump of the memory would hold the keys and the clients' images.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def fail() -> None:
        on_failure()
        main.should_exit = True

    listener = bind(settings.host, settings.port, "port")
    ops_listener = None
    if settings.ops_port is not None:
        ops_listener = bind(settings.ops_host, settings.ops_port, "ops_port")
    app = make(fail)
    services: Services = app.state.services
    main = _MainServer(_config(app, settings), services)
    _announce(settings, listener, ops_listener)
    asyncio.run(_serve(main, listener, services, ops_listener))


async def _serve(
    main: uvicorn.Server,
    listener: socket.socket,
    services: Services,
    ops_listener: socket.socket | None,
) -> None:
    if ops_listener is None:
        await main.serve([listener])
        return
    config = _config(create_ops_app(services), services.settings, lifespan="off")
    ops = _OpsServer(config)
    task = asyncio.create_task(ops.serve([ops_listener]))
    try:
        await main.serve([listener])
    finally:
        ops.should_exit = True
        await task


def _config(app: FastAPI, settings: Settings, lifespan: str = "on") -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # the server writes its own line for every request
        lifespan=lifespan,  # type: ignore[arg-type]
        timeout_graceful_shutdown=math.ceil(settings.shutdown_timeout_s),
    )


def bind(host: str, port: int, name: str) -> socket.socket:
    """A socket that has the address but does not listen yet: loading takes seconds, in which
    clients should be refused and not wait. Raises ConfigError that names the setting at fault."""
    bound = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        # Named as TCP, or asyncio leaves Nagle's algorithm on: 40 ms on every kept connection.
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        if bound is not None:
            bound.close()
        raise ConfigError(f"{name}: cannot listen on {host}:{port}: {error.strerror}") from None
    return bound


def _announce(
    settings: Settings, listener: socket.socket, ops_listener: socket.socket | None
) -> None:
    logger.info("listening on %s", address_of(listener))
    if ops_listener is not None:
        logger.info("listening for operations on %s", address_of(ops_listener))
    if not settings.has_keys and not is_loopback(settings.host):
        logger.warning("there are no API keys: whoever reaches %s is served", settings.host)


def address_of(listener: socket.socket) -> str:
    """Its URL: ``http://127.0.0.1:8000``."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "example.com")]
    [True, True, True, False, False]
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
