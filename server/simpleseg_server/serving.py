"""Sockets and processes: runs an application until it is told to stop."""

import logging
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from simpleseg_server.config import Settings


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

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    config = uvicorn.Config(
        make(fail),
        host=settings.host,
        port=settings.port,
        access_log=False,  # the server writes its own line for every request
        timeout_graceful_shutdown=int(settings.shutdown_timeout_s),
    )
    server = uvicorn.Server(config)
    server.run()
