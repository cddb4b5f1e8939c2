"""Care for single connections: what uvicorn leaves to a proxy in front of it.

``CarefulProtocol`` is uvicorn's httptools protocol with deadlines for everything that a client may
be slow at, limits of the head, and an end of each connection after which the client has read the
last answer. It is small, and looks that the parts of uvicorn that it changes are there.
"""

import asyncio
import re
import socket
import sys
from asyncio import TimerHandle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from simpleseg_server import heads
from simpleseg_server.body import time_for
from simpleseg_server.errors import ApiError, body_timeout, error_body, overloaded, wait_headers
from simpleseg_server.middleware import request_id_from

MAX_REQUESTS = 1000
"""Requests on one connection."""
MAX_AGE_S = 60.0
"""Age of a connection at which its next answer is the last."""
ENOUGH_BYTES = 64 * 1024
"""A request is begun when so much of its body has come, or all: whoever is slow takes no place."""
_READ_BYTES = 256 * 1024
LINGER_S = 2.0
"""How long a connection is read on after the last answer: closing one with unread bytes would reset
it, and the client might lose the answer."""

_HOST = re.compile(rb"[A-Za-z0-9._~-]{1,255}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?")
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_TCP_CLOSED = 7
_PROBE_S = (0.01, 0.04, 0.1, 0.25, 1.0)
"""When to look whether a client that sent its last byte is gone; the last interval repeats."""

_NEEDED = (
    "_start_asgi_task",
    "_unset_keepalive_if_required",
    "on_response_complete",
    "send_400_response",
    "timeout_keep_alive_handler",
)


@dataclass(frozen=True)
class Care:
    """Limits of connections. ``on_refusal`` hears of the requests that no route sees."""

    header_timeout_s: float
    body_timeout_s: float
    write_timeout_s: float
    max_body_bytes: int
    max_connections: int
    retry_after_s: float
    on_refusal: Callable[[ApiError, str], None]


class CarefulConfig(uvicorn.Config):
    """Uvicorn's settings with ours beside them. ``is_draining``: every answer is the last one of
    its connection. Raises RuntimeError for a uvicorn that is built differently."""

    def __init__(self, app: ASGIApp, care: Care, **options: Any) -> None:
        missing = [name for name in _NEEDED if not hasattr(HttpToolsProtocol, name)]
        if missing:
            raise RuntimeError(f"uvicorn {uvicorn.__version__} lacks {', '.join(missing)}")
        super().__init__(app, http=CarefulProtocol, ws="none", log_config=None, **options)
        self.care = care
        self.is_draining = False
        self.incoming = memoryview(bytearray(_READ_BYTES))


class _Refused(Exception):
    """Raised inside the parser; it stops there."""


class _LeavingTransport:
    """What answers are written to: closing it leaves the connection politely."""

    def __init__(self, protocol: "CarefulProtocol") -> None:
        self._protocol = protocol

    def write(self, data: bytes) -> None:
        if not self.is_closing():
            self._protocol.transport.write(data)

    def is_closing(self) -> bool:
        return self._protocol.is_leaving or self._protocol.transport.is_closing()

    def close(self) -> None:
        self._protocol.leave()


class CarefulProtocol(HttpToolsProtocol, asyncio.BufferedProtocol):
    """One connection. All of an event loop read into one buffer: without memory for one of its own
    a connection would end without an answer."""

    def __init__(
        self,
        config: CarefulConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._settings = config
        self._care = config.care
        self.is_leaving = False
        self._held: tuple[RequestResponseCycle, Any] | None = None  # since ``_held_since``
        self._deadline: TimerHandle | None = None
        self._write_deadline: TimerHandle | None = None
        self._refusal = heads.MALFORMED
        self._is_deaf = False
        self._has_eof = False
        self._is_in_body = False
        self._head_bytes = 0
        self._bytes_between = 0  # that came since a head is waited for or coming in
        self._requests = 0
        self._quiet_since = self._held_since = self._began = self.loop.time()

    # What comes in.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._care.max_connections:
            self._answer(overloaded(self._care.retry_after_s))
            transport.close()
            return
        self._await_head()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._settings.incoming

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(self._settings.incoming[:nbytes])

    def data_received(self, data: bytes | memoryview) -> None:
        if self.is_leaving or self._is_deaf:
            return
        if not self._is_in_body:
            self._bytes_between += len(data)
            self._await_head()
        super().data_received(data)  # type: ignore[arg-type]
        if not self._is_in_body and self._bytes_between > 2 * heads.MAX_HEAD_BYTES:
            self._refuse(heads.HEAD_TOO_LARGE)

    def _await_head(self) -> None:
        if self._deadline is None:
            self._set_deadline(self._care.header_timeout_s, self._on_slow_head)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        self._bytes_between = max(1, self._bytes_between)
        self._await_head()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > heads.MAX_URL_BYTES:
            self._stop(heads.URL_TOO_LONG)
        self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._head_bytes += len(name) + len(value) + 4
        if len(self.headers) > heads.MAX_HEADERS or self._head_bytes > heads.MAX_HEAD_BYTES:
            self._stop(heads.HEAD_TOO_LARGE)

    def on_headers_complete(self) -> None:
        hosts = [value for name, value in self.headers if name == b"host"]
        is_old = self.parser.get_http_version() == "1.0"
        if not (is_old and not hosts) and (len(hosts) != 1 or not _HOST.fullmatch(hosts[0])):
            self._stop(heads.HOST_WRONG)
        if any(name == b"expect" for name, _ in self.headers) and not self.expect_100_continue:
            self._stop(heads.EXPECTATION)
        self._clear_deadline()
        self._bytes_between = 0
        self._requests += 1
        super().on_headers_complete()  # which stops where the URL is none
        self._is_in_body = True
        self.cycle.transport = _LeavingTransport(self)  # type: ignore[assignment]
        if self._is_last():
            self.cycle.keep_alive = False

    def _is_last(self) -> bool:
        is_old = self.loop.time() - self._began > MAX_AGE_S
        return self._settings.is_draining or is_old or self._requests >= MAX_REQUESTS

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        length = int(dict(cycle.scope["headers"]).get(b"content-length", 0))
        is_refused = length > self._care.max_body_bytes
        if cycle.more_body and not cycle.waiting_for_100_continue and not is_refused:
            self._held, self._held_since = (cycle, app), self.loop.time()
            self._await_body()
        else:
            self._start(cycle, app)

    def _await_body(self) -> None:
        assert self._held is not None
        until = self._held_since + time_for(len(self._held[0].body), self._care.body_timeout_s)
        if until > self.loop.time():
            self._set_deadline(until - self.loop.time(), self._await_body)
        else:
            self._refuse(body_timeout())

    def _start(self, cycle: RequestResponseCycle, app: Any) -> None:
        super()._start_asgi_task(cycle, app)
        if cycle.more_body:  # the route answers 408 before, unless it reads nothing
            self._set_deadline(self._care.body_timeout_s + LINGER_S, self.leave)

    def _start_held(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            self._start(*held)

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if len(self.cycle.body) >= ENOUGH_BYTES:
            self._start_held()

    def on_message_complete(self) -> None:
        self._is_in_body = False
        self._bytes_between = 0
        self._clear_deadline()
        super().on_message_complete()
        self._start_held()
        if self.cycle is not None and self.cycle.response_complete and not self.is_leaving:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    # What goes out.

    def on_response_complete(self) -> None:
        self._quiet_since = self.loop.time()
        if self.is_leaving:
            self.server_state.total_requests += 1
            return
        super().on_response_complete()
        if self._is_in_body and self.cycle.response_complete:  # a body that nobody wants
            self._set_deadline(LINGER_S, self.leave)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_deadline is None:
            self._write_deadline = self.loop.call_later(
                self._care.write_timeout_s, self.transport.abort
            )

    def resume_writing(self) -> None:
        super().resume_writing()
        self._clear_write_deadline()

    # How a connection ends.

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """A client that has sent its last byte may still read, or be gone: both look the same,
        until something is sent to it."""
        cycle, is_first, self._has_eof = self.cycle, not self._has_eof, True
        is_asked = cycle is not None and not (cycle.response_started or cycle.more_body)
        if not is_asked or cycle.scope["http_version"] != "1.1" or self.is_leaving:
            return None
        if is_first:
            cycle.keep_alive = False
            self.transport.write(_CONTINUE)
            self.loop.call_later(_PROBE_S[0], self._look_whether_gone, 0)
        return True

    def _look_whether_gone(self, times: int) -> None:
        if self.transport.is_closing() or self.cycle.response_started:
            return
        connection: socket.socket = self.transport.get_extra_info("socket")
        if connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSED:
            self.transport.abort()
            return
        pause_s = _PROBE_S[min(times + 1, len(_PROBE_S) - 1)]
        self.loop.call_later(pause_s, self._look_whether_gone, times + 1)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._held is not None:
            self._held = None
            self._care.on_refusal(heads.GONE, request_id_from(None))
        self.is_leaving = True
        self._clear_deadline()
        self._clear_write_deadline()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        self.leave()

    def shutdown(self) -> None:
        """Make the answer under way the connection's last, or the last of those asked for."""
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def leave_if_quiet(self, for_s: float) -> None:
        """End the connection if no request is on it, or has been for some seconds."""
        is_answered = self.cycle is None or self.cycle.response_complete
        is_between = not (self._is_in_body or self._bytes_between)
        if is_answered and is_between and self.loop.time() - self._quiet_since >= for_s:
            self.leave()

    def leave(self) -> None:
        """Say that nothing more will come, and read on for a moment before closing."""
        if self.is_leaving or self.transport.is_closing():
            return
        self.is_leaving = True
        self._unset_keepalive_if_required()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self._has_eof:
            self.transport.close()
            return
        self.flow.resume_reading()
        with suppress(OSError):  # of a client that has reset the connection, which we hear of next
            self.transport.write_eof()
        self._linger(self.loop.time() + self._care.write_timeout_s)

    def _linger(self, until: float) -> None:
        def end() -> None:
            if self.transport.get_write_buffer_size() and self.loop.time() < until:
                self._linger(until)
            else:
                self.transport.abort()

        self._set_deadline(LINGER_S, end)

    # Refusals.

    def _stop(self, error: ApiError) -> None:
        """Stop the parser, which lets ``send_400_response`` be called."""
        self._refusal = error
        raise _Refused

    def send_400_response(self, msg: str) -> None:
        """Called while the parser's error is handled, which hides what it met with."""
        stopped = sys.exception()
        if stopped is not None and isinstance(stopped.__context__, MemoryError):
            if self._is_in_body:
                self.cycle.body.clear()  # room for the answer
            self._refusal = overloaded(self._care.retry_after_s)
        self._refuse(self._refusal)

    def _on_slow_head(self) -> None:
        if self._bytes_between:
            self._refuse(heads.TOO_SLOW)
        else:
            self.leave()

    def _refuse(self, error: ApiError) -> None:
        """Answer what no route will see; never into the midst of another answer."""
        if self.is_leaving:
            return
        cycle = self.cycle
        is_answering = cycle is not None and not cycle.response_complete
        is_its_body = self._is_in_body and not self.pipeline
        if is_answering and (cycle.response_started or not is_its_body):
            self._is_deaf = True
            self.shutdown()
            return
        self._answer(error, is_told=is_answering and self._held is None)
        self._held = None
        self.leave()

    def _answer(self, error: ApiError, is_told: bool = False) -> None:
        """``is_told``: a route has begun on it, and will count it."""
        request_id = request_id_from(None)
        if not is_told:
            self._care.on_refusal(error, request_id)
        body = error_body(error, request_id).model_dump_json(exclude_unset=True).encode()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "x-request-id": request_id,
            "connection": "close",
            **wait_headers(error),
        }
        lines = [f"HTTP/1.1 {error.status} ", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
        self.transport.write("\r\n".join(lines).encode() + body)

    def _set_deadline(self, seconds: float, act: Callable[[], None]) -> None:
        self._clear_deadline()
        self._deadline = self.loop.call_later(seconds, act)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _clear_write_deadline(self) -> None:
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None
