"""Sockets: runs an application until it is told to stop.

With ``ops_port`` a second listener serves probes, version and metrics, without keys. It is there
before the main one and until requests under way are done, so that an orchestrator sees a server
that drains: alive, and not ready. It has a thread and an event loop of its own, and tells when the
main one gives no sign of life.
"""

import asyncio
import ipaddress
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from simpleseg_server.app import create_ops_app
from simpleseg_server.config import ConfigError, Settings
from simpleseg_server.connections import Care, CarefulConfig
from simpleseg_server.draining import MainServer
from simpleseg_server.logs import set_up
from simpleseg_server.middleware import UnreadRequests
from simpleseg_server.services import Services
from simpleseg_server.telemetry import logger

_ACCEPTED_AT_ONCE = 16
_OTHER_FILES = 100
"""Open files besides connections: the model, logs, probes, connections that are not counted yet."""


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
    services.start_workers()
    main = MainServer(careful(app, services), services)
    _announce(settings, listener, ops_listener)
    with _operations(services, ops_listener):
        asyncio.run(_serve(main, listener, services))


async def _serve(main: MainServer, listener: socket.socket, services: Services) -> None:
    beating = asyncio.create_task(services.keeper.beat())
    try:
        await main.serve([listener])
    finally:
        beating.cancel()


@contextmanager
def _operations(services: Services, listener: socket.socket | None) -> Iterator[None]:
    """Probes and metrics on a listener, from a thread of their own."""
    if listener is None:
        yield
        return
    server = uvicorn.Server(careful(create_ops_app(services), services, lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],), name="simpleseg-ops")
    thread.daemon = True
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(services.settings.idle_timeout_s)


def careful(app: FastAPI, services: Services, lifespan: str = "on") -> CarefulConfig:
    """How uvicorn serves an application: with the limits of connections that the settings say."""
    settings, most_files = services.settings, _most_files()
    care = Care(
        header_timeout_s=settings.header_timeout_s,
        body_timeout_s=settings.body_timeout_s,
        write_timeout_s=settings.write_timeout_s,
        max_body_bytes=settings.max_body_bytes,
        max_connections=settings.max_connections or max(8, most_files - _OTHER_FILES),
        retry_after_s=settings.retry_after_s,
        on_refusal=UnreadRequests(services.metrics).record,
    )
    return CarefulConfig(
        app,
        care,
        backlog=_ACCEPTED_AT_ONCE,
        proxy_headers=False,  # nothing here asks who a client is
        access_log=False,  # the server writes its own line for every request
        lifespan=lifespan,
        timeout_keep_alive=settings.idle_timeout_s,
        timeout_graceful_shutdown=1,  # of the listener for operations alone
    )


def _most_files() -> int:
    """The limit of open files, first raised as far as it goes: what is usual is for programs that
    wait for files one by one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(soft, min(hard, 65_536) if hard != resource.RLIM_INFINITY else 65_536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


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
