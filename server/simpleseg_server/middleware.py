"""What surrounds every route: request id, log line, metrics, the last resort, the body limit.

Plain ASGI, so that bodies are counted while they stream and nothing is buffered.
"""

import asyncio
import re
import secrets
import time
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from simpleseg_server.errors import ApiError, draining, render, unforeseen
from simpleseg_server.logs import error_fields, log_request
from simpleseg_server.stages import StageTimes
from simpleseg_server.telemetry import Metrics, logger, outcome_of, server_timing

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
CLIENT_CLOSED = 499
"""Status in logs and metrics for a request whose client hung up (nginx's convention)."""

DRAINED = "drained"
"""What a request's task is cancelled with when the time is over that a stopping server gives it."""

_LINES_PER_S = 10
_SHORT_BYTES = 2**20
_LINGER_BYTES = 64 * 2**20
_LINGER_S = 2.0


class RequestContext:
    """Names every request, answers 500 for what nobody caught, and writes the log line.

    The id is the client's ``X-Request-Id`` if that is 1 to 64 characters of ``[A-Za-z0-9._-]``,
    else a new one; it is in ``scope["state"]["request_id"]`` and on every response. ``HEAD`` is
    answered as ``GET`` is.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, retry_after_s: float = 1.0) -> None:
        self.app = app
        self.metrics = metrics
        self.retry_after_s = retry_after_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method = scope["method"]
        if method == "HEAD":  # answered as GET, without the body
            scope = {**scope, "method": "GET"}
        request_id = request_id_from(Headers(scope=scope).get("x-request-id"))
        state = scope.setdefault("state", {})
        state |= {"request_id": request_id, "times": StageTimes()}
        status = CLIENT_CLOSED

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers["Server-Timing"] = server_timing(_timings_ms(state["times"]))
            elif method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        began = time.perf_counter()
        try:
            await self.app(scope, receive, send_named)
        except asyncio.CancelledError as error:
            if DRAINED not in error.args:
                raise
            if status == CLIENT_CLOSED:
                await render(draining(self.retry_after_s), request_id)(scope, receive, send_named)
        except Exception as error:
            log_bug(error, request_id)
            if status != CLIENT_CLOSED:
                raise
            last_resort = unforeseen(error, self.retry_after_s)
            await render(last_resort, request_id)(scope, receive, send_named)
        finally:
            state.pop("body", None)  # or the connection keeps it until its next request
            self._record(scope, method, status, time.perf_counter() - began)

    def _record(self, scope: Scope, method: str, status: int, seconds: float) -> None:
        """Counted and logged; the answer is out, so whatever fails here fails nobody."""
        try:
            self._count_and_log(scope, method, status, seconds)
        except Exception as error:
            log_bug(error, scope["state"]["request_id"])

    def _count_and_log(self, scope: Scope, method: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        state = scope["state"]
        status = state.get("ended", status)  # how a stream ended, whose status went out before
        times: StageTimes = state["times"]
        self.metrics.observe_request(route, status, seconds, times)
        log_request(
            logger,
            {
                "request_id": state["request_id"],
                "trace_id": state.get("trace_id"),
                "key_name": state.get("key_name"),
                "method": method if method in _METHODS else "other",
                "route": route,
                "status": status,
                "outcome": outcome_of(status),
                "duration_ms": round(seconds * 1000, 1),
                "stages_ms": times.to_dict(),
            },
        )


def _timings_ms(times: StageTimes) -> dict[str, float]:
    """What is known when the answer begins; of a stream that is little."""
    return times.to_dict() | {"total": round(times.elapsed_ms(), 3)}


def request_id_from(given: str | None) -> str:
    """The client's id if it is harmless, else a new one.

    >>> request_id_from("abc-1"), len(request_id_from("a b"))
    ('abc-1', 20)
    """
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return f"req_{secrets.token_hex(8)}"


class UnreadRequests:
    """Counts and logs the requests that end before any route can see them.

    Of those in one second the first few have a line of their own, and the others one together:
    writing lines must not be what a flood takes the server's time with. Used from an event loop.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._logged = 0
        self._not_logged: Counter[str] = Counter()

    def record(self, error: ApiError, request_id: str, key_name: str | None = None) -> None:
        if error.status == CLIENT_CLOSED:
            self._metrics.disconnects.inc()
        else:
            self._metrics.rejections.labels(error.code).inc()
        self._metrics.observe_request("other", error.status, 0.0, StageTimes())
        if not self._logged:
            asyncio.get_running_loop().call_later(1.0, self._begin_again)
        self._logged += 1
        if self._logged > _LINES_PER_S:
            self._not_logged[error.code] += 1
            return
        fields = {
            "request_id": request_id,
            "key_name": key_name,
            "method": "other",
            "route": "other",
            "status": error.status,
            "outcome": outcome_of(error.status),
            "duration_ms": 0.0,
        }
        log_request(logger, fields)

    def _begin_again(self) -> None:
        for code, count in self._not_logged.items():
            fields = {"event": "refused", "code": code, "count": count}
            logger.info("event=refused code=%s count=%d", code, count, extra={"fields": fields})
        self._logged = 0
        self._not_logged.clear()


def log_bug(error: Exception, request_id: str) -> None:
    """Where it happened, but not the exception's text, which may repeat input."""
    fields = {"event": "bug", "request_id": request_id, **error_fields(error)}
    logger.error("bug request_id=%s", request_id, extra={"fields": fields})


class BodyLimit:
    """Refuses request bodies above a number of bytes with 413, by ``Content-Length`` before a byte
    is read, else while the body streams."""

    def __init__(self, app: ASGIApp, metrics: Metrics, max_body_bytes: int) -> None:
        self.app = app
        self.metrics = metrics
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isascii() and declared.isdigit() and int(declared[:20]) > self.max_body_bytes:
            await refuse(self._error(), scope, receive, send, self.metrics)
            return
        received = 0
        is_started = False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_body_bytes:
                raise _TooLong
            return message

        async def watched(message: Message) -> None:
            nonlocal is_started
            is_started = True
            await send(message)

        try:
            await self.app(scope, counted, watched)
        except _TooLong:
            if is_started:
                raise
            await refuse(self._error(), scope, receive, send, self.metrics)

    def _error(self) -> ApiError:
        message = f"the request body may have at most {self.max_body_bytes} bytes"
        return ApiError(413, "payload_too_large", message)


async def refuse(
    error: ApiError,
    scope: Scope,
    receive: Receive,
    send: Send,
    metrics: Metrics,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Answer a request whose body nobody has read."""
    metrics.rejections.labels(error.code).inc()
    response = render(error, scope["state"]["request_id"], dict(headers))
    await answer_unread(response, scope, receive, send, is_long=error.status == 413)


async def answer_unread(
    response: ASGIApp, scope: Scope, receive: Receive, send: Send, is_long: bool = False
) -> None:
    """Give the answer to a request whose body nobody reads.

    A short body is dropped as it comes, and the connection goes on. It ends where the body is long,
    or may not come, since the client waits for a 100. A long one is read for a moment first: a
    client that is still writing would get a reset connection instead of the answer.
    """
    headers = Headers(scope=scope)
    length = headers.get("content-length", "0")
    is_long |= "transfer-encoding" in headers or len(length) > 7 or int(length) > _SHORT_BYTES
    is_awaited = "expect" in headers
    if not (is_long or is_awaited):
        await response(scope, receive, send)
        return

    async def send_and_end(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"connection", b"close")]
        elif not is_awaited:
            await send({**message, "more_body": True})
            await _discard(receive)
            message = {"type": "http.response.body", "body": b""}
        await send(message)

    await response(scope, receive, send_and_end)


class _TooLong(Exception):
    """Raised by ``receive`` where the body exceeds the limit."""


async def _discard(receive: Receive) -> None:
    left = _LINGER_BYTES
    try:
        async with asyncio.timeout(_LINGER_S):
            while left > 0:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return
                left -= len(message.get("body", b""))
    except TimeoutError:
        return
