"""Host names to addresses, by the system's resolver, without blocking the event loop."""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from ipaddress import ip_address

from simpleseg_server.addresses import IPAddress

Resolve = Callable[[str], Awaitable[tuple[IPAddress, ...]]]
"""All addresses of a host name or of an address in any spelling, in the order in which they should
be tried. Raises OSError for a host that has none."""


class ResolverBusyError(Exception):
    """Every thread waits for a name server."""


class SystemResolver:
    """``getaddrinfo`` in threads of its own, of which ``max_threads`` may be busy.

    Nothing can interrupt ``getaddrinfo``: a name server that never answers holds a thread for as
    long as the system waits. So these are neither the threads that others wait for, nor ones that
    hold up the end of the process.
    """

    def __init__(self, max_threads: int) -> None:
        self._free = threading.BoundedSemaphore(max_threads)

    async def __call__(self, host: str) -> tuple[IPAddress, ...]:
        """Raises OSError and ResolverBusyError."""
        if not self._free.acquire(blocking=False):
            raise ResolverBusyError
        loop = asyncio.get_running_loop()
        found: asyncio.Future[tuple[IPAddress, ...]] = loop.create_future()

        def run() -> None:
            try:
                answer: tuple[IPAddress, ...] | OSError = _resolved(host)
            except (OSError, ValueError) as error:  # ValueError: no name at all
                answer = OSError(type(error).__name__)
            finally:
                self._free.release()
            with suppress(RuntimeError):  # nobody waits on a closed loop
                loop.call_soon_threadsafe(_settle, found, answer)

        threading.Thread(target=run, name="simpleseg-resolver", daemon=True).start()
        return await found


def _resolved(host: str) -> tuple[IPAddress, ...]:
    answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(ip_address(answer[4][0]) for answer in answers))


def _settle(
    found: "asyncio.Future[tuple[IPAddress, ...]]", answer: tuple[IPAddress, ...] | OSError
) -> None:
    if found.cancelled():
        return
    if isinstance(answer, OSError):
        found.set_exception(answer)
    else:
        found.set_result(answer)
