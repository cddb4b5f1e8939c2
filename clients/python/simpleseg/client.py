"""SimpleSeg and AsyncSimpleSeg: the protocol over a socket."""

import asyncio
import os
import time
from collections.abc import Sequence
from itertools import count
from types import TracebackType
from typing import Self, Unpack, overload

import httpx2

from simpleseg.errors import APIConnectionError, APITimeoutError
from simpleseg.image_input import ImageInput, SentImage, sent_image
from simpleseg.protocol import (
    DEFAULT_BASE_URL,
    HttpRequest,
    HttpResponse,
    PromptInput,
    SegmentOptions,
    as_prompts,
    base_headers,
    check_base_url,
    read_segment_response,
    retry_after,
    segment_request,
)
from simpleseg.results import Segmentation, segmentations
from simpleseg.retry import backoff_s
from simpleseg.schema import PromptItem, SegmentResponse, Task

DEFAULT_TIMEOUT_S = 60.0
_CONNECT_TIMEOUT_S = 5.0

Prompts = PromptInput | Sequence[PromptInput]


class _Settings:
    """What both clients are told, and what the environment says where they are not."""

    def __init__(
        self, base_url: str | None, api_key: str | None, timeout: float, max_retries: int
    ) -> None:
        url = base_url or os.environ.get("SIMPLESEG_BASE_URL") or DEFAULT_BASE_URL
        self.base_url = check_base_url(url)
        self.headers = base_headers(api_key or os.environ.get("SIMPLESEG_API_KEY"))
        self.timeout = timeout
        self.max_retries = max_retries

    def http_request(
        self,
        http: httpx2.Client | httpx2.AsyncClient,
        request: HttpRequest,
        timeout: float | None,
    ) -> httpx2.Request:
        seconds = self.timeout if timeout is None else timeout
        return http.build_request(
            request.method,
            self.base_url + request.path,
            headers={**self.headers, **request.headers},
            content=request.content,
            timeout=httpx2.Timeout(seconds, connect=min(_CONNECT_TIMEOUT_S, seconds)),
        )

    def delay_after_failure(self, error: httpx2.TransportError, attempt: int) -> float:
        """Seconds before the next attempt where no answer came; raises where there is none.

        A timeout is final unless nobody took the connection: the server may still be at work.
        """
        timed_out = isinstance(error, httpx2.TimeoutException)
        final = timed_out and not isinstance(error, httpx2.ConnectTimeout)
        if final or attempt >= self.max_retries:
            raise self._connection_error(error) from error
        return backoff_s(attempt)

    def _connection_error(self, error: httpx2.TransportError) -> APIConnectionError:
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return APIConnectionError(f"no server answers at {self.base_url}")
        if isinstance(error, httpx2.TimeoutException):
            return APITimeoutError(f"{self.base_url} did not answer in time")
        return APIConnectionError(f"{self.base_url} broke off ({type(error).__name__})")


class SimpleSeg:
    """A connection to a SimpleSeg server; close it, or use it in a ``with`` statement.

    ``base_url`` and ``api_key`` default to the environment's ``SIMPLESEG_BASE_URL`` (else
    http://127.0.0.1:8000) and ``SIMPLESEG_API_KEY``. ``timeout`` bounds every wait for the server,
    in seconds (5 for the connection). ``max_retries`` counts the further attempts after a lost
    connection, an overload or a server error. An ``http_client`` of your own is not closed here.

    with SimpleSeg() as client:
        result = client.segment("street.jpg", "the red car on the left")
        result.overlay().save("overlay.png")
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        max_retries: int = 2,
        http_client: httpx2.Client | None = None,
    ) -> None:
        self._settings = _Settings(base_url, api_key, timeout, max_retries)
        self._owns_http = http_client is None
        self._http = http_client or httpx2.Client()

    # A str is a sequence of str too; the first overload is meant for it.
    @overload
    def segment(  # type: ignore[overload-overlap]
        self,
        image: ImageInput,
        prompt: PromptInput,
        *,
        timeout: float | None = None,
        **options: Unpack[SegmentOptions],
    ) -> Segmentation: ...

    @overload
    def segment(
        self,
        image: ImageInput,
        prompt: Sequence[PromptInput],
        *,
        timeout: float | None = None,
        **options: Unpack[SegmentOptions],
    ) -> list[Segmentation]: ...

    def segment(
        self,
        image: ImageInput,
        prompt: Prompts,
        *,
        timeout: float | None = None,
        **options: Unpack[SegmentOptions],
    ) -> Segmentation | list[Segmentation]:
        """The region of the object that ``prompt`` names; a list of results for a list of prompts.

        ``image`` is a path, a file's bytes, a PIL image, a uint8 array, or an http(s) URL for the
        server to fetch, which it refuses with ``image_url_blocked`` unless its operator allows it.
        Options: ``model``, ``max_points``, ``max_tokens``, ``temperature``, ``seed``.

        Raises SimpleSegError (see ``simpleseg.errors``), and OSError for an unreadable path.
        """
        sent = sent_image(image)
        request = segment_request(sent, as_prompts(prompt), "region", options)
        return _results(self._send(request, timeout), prompt, sent)

    def respond(
        self,
        image: ImageInput,
        prompt: Prompts,
        *,
        task: Task = "region",
        timeout: float | None = None,
        **options: Unpack[SegmentOptions],
    ) -> SegmentResponse:
        """The whole answer of ``POST /segment``, for any task: region, box, point or text."""
        prompts = as_prompts(prompt)
        request = segment_request(sent_image(image), prompts, task, options)
        return read_segment_response(self._send(request, timeout), len(prompts))

    def _send(self, request: HttpRequest, timeout: float | None) -> HttpResponse:
        for attempt in count():
            try:
                outgoing = self._settings.http_request(self._http, request, timeout)
                response = _received(self._http.send(outgoing))
            except httpx2.TransportError as error:
                delay_s = self._settings.delay_after_failure(error, attempt)
            else:
                wait_s = retry_after(response, attempt, self._settings.max_retries)
                if wait_s is None:
                    return response
                delay_s = wait_s
            time.sleep(delay_s)
        raise AssertionError("the loop ends by return or raise")

    def close(self) -> None:
        """Close the connections."""
        if self._owns_http:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncSimpleSeg:
    """The same as SimpleSeg for asyncio: ``await client.segment(...)`` in an ``async with``."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        max_retries: int = 2,
        http_client: httpx2.AsyncClient | None = None,
    ) -> None:
        self._settings = _Settings(base_url, api_key, timeout, max_retries)
        self._owns_http = http_client is None
        self._http = http_client or httpx2.AsyncClient()

    @overload
    async def segment(  # type: ignore[overload-overlap]
        self,
        image: ImageInput,
        prompt: PromptInput,
        *,
        timeout: float | None = None,
        **options: Unpack[SegmentOptions],
    ) -> Segmentation: ...

    @overload
    async def segment(
        self,
        image: ImageInput,
        prompt: Sequence[PromptInput],
        *,
        timeout: float | None = None,
        **options: Unpack[SegmentOptions],
    ) -> list[Segmentation]: ...

    async def segment(
        self,
        image: ImageInput,
        prompt: Prompts,
        *,
        timeout: float | None = None,
        **options: Unpack[SegmentOptions],
    ) -> Segmentation | list[Segmentation]:
        """See ``SimpleSeg.segment``; reading and encoding the image is done in a thread."""
        sent = await asyncio.to_thread(sent_image, image)
        request = segment_request(sent, as_prompts(prompt), "region", options)
        return _results(await self._send(request, timeout), prompt, sent)

    async def respond(
        self,
        image: ImageInput,
        prompt: Prompts,
        *,
        task: Task = "region",
        timeout: float | None = None,
        **options: Unpack[SegmentOptions],
    ) -> SegmentResponse:
        """See ``SimpleSeg.respond``."""
        sent = await asyncio.to_thread(sent_image, image)
        prompts = as_prompts(prompt)
        request = segment_request(sent, prompts, task, options)
        return read_segment_response(await self._send(request, timeout), len(prompts))

    async def _send(self, request: HttpRequest, timeout: float | None) -> HttpResponse:
        for attempt in count():
            try:
                outgoing = self._settings.http_request(self._http, request, timeout)
                response = _received(await self._http.send(outgoing))
            except httpx2.TransportError as error:
                delay_s = self._settings.delay_after_failure(error, attempt)
            else:
                wait_s = retry_after(response, attempt, self._settings.max_retries)
                if wait_s is None:
                    return response
                delay_s = wait_s
            await asyncio.sleep(delay_s)
        raise AssertionError("the loop ends by return or raise")

    async def close(self) -> None:
        """Close the connections."""
        if self._owns_http:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


def _received(response: httpx2.Response) -> HttpResponse:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return HttpResponse(response.status_code, headers, response.content)


def _results(
    response: HttpResponse, prompt: Prompts, image: SentImage
) -> Segmentation | list[Segmentation]:
    answer = read_segment_response(response, len(as_prompts(prompt)))
    results = segmentations(answer, response.headers.get("x-request-id"), image.open_image)
    return results[0] if isinstance(prompt, str | PromptItem) else results
