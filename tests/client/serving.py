"""A real server on a socket, for the tests of the clients and the command line."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from simpleseg_server.app import create_app
from simpleseg_server.config import Settings
from simpleseg_server.engines.scripted import ScriptedEngine

TRIANGLE = "[[[0.25, 0.25], [0.75, 0.25], [0.5, 0.75]]]"


@contextmanager
def serving(engine: ScriptedEngine, **settings: Any) -> Iterator[str]:
    """The URL of a server with this engine, as long as the block lasts."""
    application = create_app(Settings(**{"image_decoding": "thread", **settings}), engine)
    server = uvicorn.Server(uvicorn.Config(application, port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
