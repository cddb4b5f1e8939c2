"""AsyncSimpleSeg: the protocol over a socket, for asyncio."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from types import TracebackType
from typing import Self, TypeVar, Unpack, overload

import httpx2

from simpleseg import calls
from simpleseg.errors import SimpleSegError
from simpleseg.image_input import ImageInput
from simpleseg.many import (
    Item,
    OnError,
    Order,
    Outcome,
    Plan,
    answered_async,
    paired,
    run_many_async,
)
from simpleseg.protocol import (
    Call,
    HttpRequest,
    HttpResponse,
    PromptInput,
    Prompts,
    SegmentOptions,
)
from simpleseg.results import Segmentation
from simpleseg.retry import RetryBudget
from simpleseg.schema import ModelInfo, SegmentResponse, Task, UploadedImage
from simpleseg.streaming import AsyncSegmentStream
from simpleseg.transport import DEFAULT_TIMEOUT_S, Attempts, Connection, limit_body, received

T = TypeVar("T")


class AsyncSimpleSeg:
    """The same as SimpleSeg for asyncio: ``await client.segment(...)`` in an ``async with``.

    Images are read and encoded in a thread.

    >>> async def main() -> None:
    ...     async with AsyncSimpleSeg() as client:
    ...         async for outcome in client.segment_many(["street.jpg"] * 2, "the car"):
    ...             print(outcome.result.status)
    >>> asyncio.run(main())
    ok
    ok
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        max_retries: int = 2,
        retry_budget: RetryBudget | None = None,
        http_client: httpx2.AsyncClient | None = None,
    ) -> None:
        self._connection = Connection(base_url, api_key, timeout, max_retries, retry_budget)
        self._owns_http = http_client is None
        self._http = http_client or httpx2.AsyncClient(limits=Connection.limits)
        self._loop: asyncio.AbstractEventLoop | None = None

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
        """See ``SimpleSeg.segment``."""
        call = await asyncio.to_thread(calls.segment_call, image, prompt, options)
        return calls.one_or_all(await self._run(call, timeout), prompt)

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
        call = await asyncio.to_thread(calls.respond_call, image, prompt, task, options)
        return await self._run(call, timeout)

    @asynccontextmanager
    async def stream(
        self,
        image: ImageInput,
        prompt: Prompts,
        *,
        timeout: float | None = None,
        **options: Unpack[SegmentOptions],
    ) -> AsyncGenerator[AsyncSegmentStream]:
        """See ``SimpleSeg.stream``: ``async with client.stream(...) as stream``."""
        call = await asyncio.to_thread(calls.stream_call, image, prompt, options)
        response = await self._send(call.request, timeout, stream=True)
        async with aclosing(response):
            reader = call.read(received(response, with_body=response.is_closed))
            yield AsyncSegmentStream(response, reader, self._connection)

    def segment_many(
        self,
        images: Iterable[Item],
        prompt: Prompts | None = None,
        *,
        concurrency: int = 8,
        order: Order = "input",
        on_error: OnError = "raise",
        progress: bool = False,
        timeout: float | None = None,
        **options: Unpack[SegmentOptions],
    ) -> AsyncGenerator[Outcome]:
        """See ``SimpleSeg.segment_many``: ``async for outcome in client.segment_many(...)``."""
        plan = Plan(concurrency, order, on_error, progress)

        async def ask(image: ImageInput, prompt: Prompts) -> list[Segmentation]:
            call = await asyncio.to_thread(calls.segment_call, image, prompt, options)
            return await self._run(call, timeout)

        return run_many_async(paired(images, prompt), answered_async(ask), plan)

    async def upload(self, image: ImageInput, *, timeout: float | None = None) -> UploadedImage:
        """See ``SimpleSeg.upload``."""
        return await self._run(await asyncio.to_thread(calls.upload_call, image), timeout)

    async def get_image(
        self, image: UploadedImage | str, *, timeout: float | None = None
    ) -> UploadedImage:
        """See ``SimpleSeg.get_image``."""
        return await self._run(calls.get_image_call(image), timeout)

    async def delete_image(
        self, image: UploadedImage | str, *, timeout: float | None = None
    ) -> None:
        """See ``SimpleSeg.delete_image``."""
        await self._run(calls.delete_image_call(image), timeout)

    async def models(self, *, timeout: float | None = None) -> Sequence[ModelInfo]:
        """See ``SimpleSeg.models``."""
        return await self._run(calls.models_call(), timeout)

    async def send(self, request: HttpRequest, *, timeout: float | None = None) -> HttpResponse:
        """See ``SimpleSeg.send``."""
        return received(await self._send(request, timeout))

    async def _run(self, call: Call[T], timeout: float | None) -> T:
        return call.read(await self.send(call.request, timeout=timeout))

    async def _send(
        self, request: HttpRequest, timeout: float | None, *, stream: bool = False
    ) -> httpx2.Response:
        """The answer; of a stream only the head, unless it is an error."""
        self._check_loop()
        attempts = Attempts(self._connection, request.request_id)
        while True:
            try:
                outgoing = self._connection.outgoing(self._http, request, timeout)
                response = await self._http.send(outgoing, stream=True)
                is_open = stream and response.is_success
                if not is_open:
                    async with aclosing(response):
                        limit_body(response)
                        await response.aread()
            except httpx2.RequestError as error:
                delay_s = attempts.after_failure(error)
            else:
                wait_s = attempts.after_answer(received(response, with_body=not is_open))
                if wait_s is None:
                    return response
                delay_s = wait_s
            await asyncio.sleep(delay_s)

    def _check_loop(self) -> None:
        """Connections belong to the event loop that they were made in."""
        loop = asyncio.get_running_loop()
        if (self._loop or loop) is not loop:
            message = "the client was used in another event loop; make one in each asyncio.run"
            raise SimpleSegError(message)
        self._loop = loop

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
