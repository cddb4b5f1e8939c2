"""A process that does not outlive the server that it belongs to."""

import os
import signal
import threading
from multiprocessing.process import BaseProcess
from typing import Protocol


class Joinable(Protocol):
    def join(self) -> None: ...


def end_with(server: "Joinable | BaseProcess") -> None:
    """Kill this process as soon as ``server`` is gone, however it went."""

    def watch() -> None:
        server.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="server-watch", daemon=True).start()
