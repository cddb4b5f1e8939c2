"""Sockets and processes: runs an application until it is told to stop."""

from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from simpleseg_server.config import Settings
from simpleseg_server.logs import set_up


def run(
    settings: Settings,
    make: Callable[[Callable[[], None]], FastAPI],
    on_failure: Callable[[], None],
) -> None:
    """Serve until a signal, or until the engine cannot start, which calls ``on_failure``.

    ``make`` gives the application; it takes what to call where the engine cannot start.
    """

    def fail() -> None:
        on_failure()
        server.should_exit = True

    set_up(settings.log_format, settings.log_level)
    config = uvicorn.Config(
        make(fail),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,  # the server writes its own line for every request
        timeout_graceful_shutdown=int(settings.shutdown_timeout_s),
    )
    server = uvicorn.Server(config)
    server.run()
