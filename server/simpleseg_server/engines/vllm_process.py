"""The process in which vLLM schedules and computes.

Spawned, it imports vLLM afresh, for half of the start, after this process has done the same. On a
CPU it is forked instead, from a process that imports vLLM while this one does. That one has a
single thread by then and no GPU; a fork of the server itself would have neither.
"""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from types import ModuleType

from simpleseg_server.engines import vllm_environment
from simpleseg_server.supervision.parent import end_with

_PRELOADED = "simpleseg_server.engines.vllm_preload"
_SERVER_PID = "OWNER_OF_VLLM_PID"


def begin() -> None:
    """Start to import, in the background, what the engine's process needs; nothing where vLLM is
    built for a GPU. Idempotent."""
    vllm_environment.prepare()
    os.environ[_SERVER_PID] = str(os.getpid())
    if vllm_environment.is_for_cpu():
        multiprocessing.set_forkserver_preload([_PRELOADED])
        forkserver.ensure_running()


@contextmanager
def forked(starter: ModuleType) -> Iterator[None]:
    """vLLM's module ``starter`` forks the process that it starts inside, if ``begin`` began.

    vLLM's own setting allows only to spawn, or to fork this process.
    """
    name = "get_mp_context"
    original = getattr(starter, name, None)
    if original is None or not vllm_environment.is_for_cpu():
        yield
        return
    setattr(starter, name, lambda: multiprocessing.get_context("forkserver"))
    try:
        yield
    finally:
        setattr(starter, name, original)


def end_with_server() -> None:
    """End this process when the server that started it is gone, however it went; vLLM's own would
    stay, and keep the memory. vLLM calls it in each of its processes, and it does nothing in one
    that no server of ours has started."""
    server = multiprocessing.parent_process()
    if server is not None and os.environ.get(_SERVER_PID) == str(server.pid):
        end_with(server)
