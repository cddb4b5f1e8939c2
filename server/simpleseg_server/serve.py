"""Runs the application with uvicorn until it is told to stop or the engine cannot start."""

import uvicorn

from simpleseg_server.app import create_app
from simpleseg_server.config import Settings
from simpleseg_server.engines.base import Engine

_MAX_HEADER_BYTES = 16 * 1024
_KEEP_ALIVE_S = 5


def serve(settings: Settings, engine: Engine) -> int:
    """Serve on ``settings.host`` and ``settings.port``; blocks. Returns the process's exit status:
    0 after an orderly stop, 1 where the engine could not start.
    """
    has_failed = False

    def stop() -> None:
        nonlocal has_failed
        has_failed = True
        server.should_exit = True

    server = uvicorn.Server(
        uvicorn.Config(
            create_app(settings, engine, on_engine_failure=stop),
            host=settings.host,
            port=settings.port,
            log_config=None,  # logging is set up by the program
            access_log=False,  # the application writes one line for each request itself
            server_header=False,
            h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
            timeout_keep_alive=_KEEP_ALIVE_S,
        )
    )
    server.run()
    return 1 if has_failed else 0
