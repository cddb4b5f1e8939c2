"""SimpleSeg: the protocol over a socket. ``async_client.py`` is the same for asyncio."""

import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing, contextmanager
from types import TracebackType
from typing import Self, TypeVar, Unpack, overload

import httpx2

from simpleseg import calls
from simpleseg.image_input import ImageInput
from simpleseg.many import Item, OnError, Order, Outcome, Plan, answered, paired, run_many
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
from simpleseg.streaming import SegmentStream
from simpleseg.transport import DEFAULT_TIMEOUT_S, Attempts, Connection, limit_body, received

T = TypeVar("T")


class SimpleSeg:
    """A connection to a SimpleSeg server; close it, or use it in a ``with`` statement.

    ``base_url`` and ``api_key`` default to the environment's ``SIMPLESEG_BASE_URL`` (else
    http://127.0.0.1:8000) and ``SIMPLESEG_API_KEY``. ``timeout`` bounds every wait for the server,
    and the whole of a body that is not streamed, in seconds (5 for the connection).
    ``max_retries`` counts the further attempts after a lost connection, an overload or a server
    error; ``retry_budget`` bounds those of all requests together, and may be shared by several
    clients. An ``http_client`` of your own is not closed here. Threads may share a client.

    Every method raises SimpleSegError (its tree is in ``simpleseg.errors``), and OSError for an
    unreadable path.

    >>> with SimpleSeg() as client:
    ...     result = client.segment("street.jpg", "the red car on the left")
    >>> result.status, len(result.polygons)
    ('ok', 1)
    >>> result.overlay().save("overlay.png")
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        max_retries: int = 2,
        retry_budget: RetryBudget | None = None,
        http_client: httpx2.Client | None = None,
    ) -> None:
        self._connection = Connection(base_url, api_key, timeout, max_retries, retry_budget)
        self._owns_http = http_client is None
        self._http = http_client or httpx2.Client(limits=Connection.limits)

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

        ``image`` is a path, a file's bytes, a PIL image, a uint8 array, what ``upload`` returned,
        or an http(s) URL for the server to fetch, which it refuses with ``image_url_blocked``
        unless its operator allows it. Options are those of ``SegmentOptions``: ``max_points``,
        ``simplify``, ``deadline_ms``, ``refine``, ``samples``, ...

        >>> with SimpleSeg() as client:
        ...     car, dog = client.segment("street.jpg", ["the car", "the dog"], max_points=64)
        >>> car.label, dog.label
        ('the car', 'the dog')
        """
        call = calls.segment_call(image, prompt, options)
        return calls.one_or_all(self._run(call, timeout), prompt)

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
        return self._run(calls.respond_call(image, prompt, task, options), timeout)

    @contextmanager
    def stream(
        self,
        image: ImageInput,
        prompt: Prompts,
        *,
        timeout: float | None = None,
        **options: Unpack[SegmentOptions],
    ) -> Generator[SegmentStream]:
        """The events of an answer while the model writes it, and then its results.

        Leaving the ``with`` block closes the connection, which ends the work at the server.

        >>> with SimpleSeg() as client, client.stream("street.jpg", "the car") as stream:
        ...     for event in stream:
        ...         if event.type == "segmentation.points.delta":
        ...             print(event.points)
        ...     print(stream.results[0].status)
        [[0.25, 0.25], [0.75, 0.25], [0.5, 0.75]]
        ok
        """
        call = calls.stream_call(image, prompt, options)
        with closing(self._send(call.request, timeout, stream=True)) as response:
            reader = call.read(received(response, with_body=response.is_closed))
            yield SegmentStream(response, reader, self._connection)

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
    ) -> Generator[Outcome]:
        """What ``segment`` answers for each of ``images``, ``concurrency`` at a time.

        An item is an image, for which ``prompt`` counts, or a pair of an image and its own prompt.
        Items are taken as they are needed. Outcomes come in the order of the input, or as they are
        ``completed``. With ``on_error`` "raise" the first error ends the iteration, with "yield"
        it is the outcome's ``error``. ``progress`` draws a bar on standard error.

        >>> with SimpleSeg() as client:
        ...     for outcome in client.segment_many(["street.jpg", "none.jpg"], "the car",
        ...                                        on_error="yield"):
        ...         print(outcome.index, outcome.error or outcome.result.status)
        0 ok
        1 [Errno 2] No such file or directory: 'none.jpg'
        """
        plan = Plan(concurrency, order, on_error, progress)

        def ask(image: ImageInput, prompt: Prompts) -> list[Segmentation]:
            return self._run(calls.segment_call(image, prompt, options), timeout)

        return run_many(paired(images, prompt), answered(ask), plan)

    def upload(self, image: ImageInput, *, timeout: float | None = None) -> UploadedImage:
        """Keep an image on the server for a while; what is returned stands for it elsewhere.

        >>> with SimpleSeg() as client:
        ...     kept = client.upload("street.jpg")
        ...     result = client.segment(kept, "the car")
        ...     client.delete_image(kept)
        >>> kept.width, result.size_hw.width
        (80, 80)
        """
        return self._run(calls.upload_call(image), timeout)

    def get_image(
        self, image: UploadedImage | str, *, timeout: float | None = None
    ) -> UploadedImage:
        """A kept image, by its id. Raises NotFoundError where the server has it no longer."""
        return self._run(calls.get_image_call(image), timeout)

    def delete_image(self, image: UploadedImage | str, *, timeout: float | None = None) -> None:
        """Let the server forget a kept image. Raises NotFoundError as ``get_image`` does."""
        self._run(calls.delete_image_call(image), timeout)

    def models(self, *, timeout: float | None = None) -> Sequence[ModelInfo]:
        """What the server serves, and the tasks that it can do."""
        return self._run(calls.models_call(), timeout)

    def send(self, request: HttpRequest, *, timeout: float | None = None) -> HttpResponse:
        """The answer to any request, whatever its status, after the retries."""
        return received(self._send(request, timeout))

    def _run(self, call: Call[T], timeout: float | None) -> T:
        return call.read(self.send(call.request, timeout=timeout))

    def _send(
        self, request: HttpRequest, timeout: float | None, *, stream: bool = False
    ) -> httpx2.Response:
        """The answer; of a stream only the head, unless it is an error."""
        attempts = Attempts(self._connection, request.request_id)
        while True:
            try:
                outgoing = self._connection.outgoing(self._http, request, timeout)
                response = self._http.send(outgoing, stream=True)
                is_open = stream and response.is_success
                if not is_open:
                    with closing(response):
                        limit_body(response)
                        response.read()
            except httpx2.RequestError as error:
                delay_s = attempts.after_failure(error)
            else:
                wait_s = attempts.after_answer(received(response, with_body=not is_open))
                if wait_s is None:
                    return response
                delay_s = wait_s
            time.sleep(delay_s)

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
