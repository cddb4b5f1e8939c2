"""What both clients know of their server, and how they go on after an attempt that failed."""

import os
import time
from collections.abc import AsyncIterator, Iterator
from typing import ClassVar

import httpx2

from simpleseg.errors import APIConnectionError, APITimeoutError, ServerUnreachableError
from simpleseg.protocol import (
    DEFAULT_BASE_URL,
    HttpRequest,
    HttpResponse,
    base_headers,
    check_base_url,
    retry_after,
)
from simpleseg.retry import RetryBudget, backoff_s

DEFAULT_TIMEOUT_S = 60.0
_CONNECT_TIMEOUT_S = 5.0


class Connection:
    """What both clients are told, and what the environment says where they are not."""

    limits: ClassVar[httpx2.Limits] = httpx2.Limits(
        max_connections=100,
        max_keepalive_connections=20,
        # Less than the 5 s of servers: a request must not meet a connection that is being closed.
        keepalive_expiry=2.0,
    )

    def __init__(
        self,
        base_url: str | None,
        api_key: str | None,
        timeout: float,
        max_retries: int,
        retry_budget: RetryBudget | None,
    ) -> None:
        url = base_url or os.environ.get("SIMPLESEG_BASE_URL") or DEFAULT_BASE_URL
        self.base_url = check_base_url(url)
        self.max_retries = max_retries
        self.budget = retry_budget or RetryBudget()
        self._headers = base_headers(api_key or os.environ.get("SIMPLESEG_API_KEY"))
        self._timeout = timeout

    def outgoing(
        self,
        http: httpx2.Client | httpx2.AsyncClient,
        request: HttpRequest,
        timeout: float | None,
    ) -> httpx2.Request:
        """The request as ``http`` sends it."""
        seconds = self._timeout if timeout is None else timeout
        return http.build_request(
            request.method,
            self.base_url + request.path,
            headers={**self._headers, **request.headers},
            content=request.content,
            timeout=httpx2.Timeout(seconds, connect=min(_CONNECT_TIMEOUT_S, seconds)),
        )

    def error(self, error: httpx2.RequestError, request_id: str | None) -> APIConnectionError:
        """A failure of the socket, or of what came from it, in our words."""
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            message = f"no server answers at {self.base_url}"
            ours: APIConnectionError = ServerUnreachableError(message)
        elif isinstance(error, httpx2.TimeoutException):
            ours = APITimeoutError(f"{self.base_url} did not answer in time")
        else:
            ours = APIConnectionError(f"{self.base_url} broke off ({type(error).__name__})")
        ours.request_id = request_id
        return ours


class Attempts:
    """The attempts of one request: after each, how long until the next, if there is one."""

    def __init__(self, connection: Connection, request_id: str) -> None:
        self._connection = connection
        self._request_id = request_id
        self._retries = 0

    def after_failure(self, error: httpx2.RequestError) -> float:
        """Seconds before the next attempt where no answer came; raises where there is none.

        A timeout is final unless nobody took the connection: the server may still be at work.
        """
        timed_out = isinstance(error, httpx2.TimeoutException)
        final = timed_out and not isinstance(error, httpx2.ConnectTimeout)
        if final or self._retries >= self._connection.max_retries or not self._take():
            raise self._connection.error(error, self._request_id) from error
        return backoff_s(self._retries - 1)

    def after_answer(self, response: HttpResponse) -> float | None:
        """Seconds before the next attempt, None where the answer stands."""
        wait_s = retry_after(response, self._retries, self._connection.max_retries)
        if wait_s is not None and self._take():
            return wait_s
        if response.status < 500:
            self._connection.budget.give()
        return None

    def _take(self) -> bool:
        allowed = self._connection.budget.take()
        self._retries += allowed
        return allowed


def received(response: httpx2.Response, *, with_body: bool = True) -> HttpResponse:
    """The answer as the protocol reads it."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    return HttpResponse(response.status_code, headers, response.content if with_body else b"")


class _TimedBody(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A body that fails as a timeout where it is not there in ``seconds``."""

    def __init__(self, stream: object, seconds: float) -> None:
        self._stream = stream
        self._ends_at = time.monotonic() + seconds

    def _check(self) -> None:
        if time.monotonic() > self._ends_at:
            raise httpx2.ReadTimeout("the body takes too long")

    def __iter__(self) -> Iterator[bytes]:
        assert isinstance(self._stream, httpx2.SyncByteStream)
        for piece in self._stream:
            self._check()
            yield piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert isinstance(self._stream, httpx2.AsyncByteStream)
        async for piece in self._stream:
            self._check()
            yield piece

    def close(self) -> None:
        if isinstance(self._stream, httpx2.SyncByteStream):
            self._stream.close()

    async def aclose(self) -> None:
        if isinstance(self._stream, httpx2.AsyncByteStream):
            await self._stream.aclose()


def limit_body(response: httpx2.Response) -> None:
    """Let the whole body of an open response take no longer than the request lets a single wait: a
    server that sends a byte now and then would never end it."""
    seconds = response.request.extensions.get("timeout", {}).get("read")
    if seconds is not None:
        response.stream = _TimedBody(response.stream, seconds)
