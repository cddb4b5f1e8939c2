"""A stream of ``POST /segment``: server-sent events -> typed events, and the results at the end."""

from collections.abc import AsyncIterator, Iterator

import httpx2
from pydantic import TypeAdapter, ValidationError

from simpleseg.errors import APIConnectionError, StreamError
from simpleseg.protocol import first_problem, format_error
from simpleseg.results import OpenImage, Segmentation, segmentations
from simpleseg.schema import (
    Completed,
    Created,
    ErrorResponse,
    PointsDelta,
    PolygonDone,
    ResultDone,
    SegmentResponse,
    StreamEvent,
)
from simpleseg.transport import Connection

_EVENT: TypeAdapter[StreamEvent] = TypeAdapter(StreamEvent)
_TYPES = frozenset(
    str(model.model_fields["type"].default)
    for model in (Created, PointsDelta, PolygonDone, ResultDone, Completed)
)
_END = "[DONE]"


class StreamReader:
    """Reads a stream's events, without input or output.

    Events of types that this version does not know are passed over.
    """

    def __init__(
        self, request_id: str | None, prompt_count: int, open_image: OpenImage | None = None
    ) -> None:
        self.request_id = request_id
        self._prompt_count = prompt_count
        self._open_image = open_image
        self._response: SegmentResponse | None = None
        self.is_done = False

    def read(self, event: str, data: str) -> StreamEvent | None:
        """The event, None for one that tells nothing to the caller.

        Raises StreamError where the server reports an error, ResponseFormatError for what is not
        an event of this server.
        """
        if data == _END:
            self.finish()
            return None
        if event != "error" and event not in _TYPES:
            return None
        try:
            if event == "error":
                raise self._stream_error(data)
            found = _EVENT.validate_json(data)
        except ValidationError as error:
            problem = first_problem(error)
            raise format_error(f"the event {event}: {problem}", self.request_id) from None
        if isinstance(found, Completed):
            self._complete(found.response)
        return found

    def _complete(self, response: SegmentResponse) -> None:
        if len(response.results) != self._prompt_count:
            message = f"{len(response.results)} results for {self._prompt_count} prompts"
            raise format_error(message, self.request_id)
        self._response = response

    def _stream_error(self, data: str) -> StreamError:
        info = ErrorResponse.model_validate_json(data).error
        return StreamError(
            info.message,
            code=info.code,
            param=info.param,
            request_id=info.request_id,
            retry_after_ms=info.retry_after_ms,
        )

    def finish(self) -> None:
        """The stream ends here. Raises APIConnectionError where it broke off before its result."""
        self.is_done = True
        if self._response is None:
            broken = APIConnectionError("the stream broke off before its end")
            broken.request_id = self.request_id
            raise broken

    @property
    def response(self) -> SegmentResponse:
        """The plain answer. Raises ValueError before the stream is completed."""
        if self._response is None:
            raise ValueError("the stream is not completed: read its events first")
        return self._response

    @property
    def results(self) -> list[Segmentation]:
        """What ``segment`` would have returned. Raises ValueError as ``response`` does."""
        return segmentations(self.response, self.request_id, self._open_image)


class _Stream:
    """What both streams are: the results, and the connection below."""

    def __init__(
        self, response: httpx2.Response, reader: StreamReader, connection: Connection
    ) -> None:
        # An event may be as large as a plain answer is, and has no limit either.
        self._events = httpx2.EventSource(response, max_event_size=None)
        self._reader = reader
        self._connection = connection

    @property
    def request_id(self) -> str | None:
        """Finds the request in the server's log."""
        return self._reader.request_id

    @property
    def response(self) -> SegmentResponse:
        """The plain answer, once the stream is completed; ValueError before."""
        return self._reader.response

    @property
    def results(self) -> list[Segmentation]:
        """The results, one for each prompt, once the stream is completed; ValueError before."""
        return self._reader.results


class SegmentStream(_Stream):
    """The events of one answer, each once, while the model writes it.

    Iterating raises StreamError where the server reports an error, APIConnectionError where the
    connection is lost; there is no reconnecting, since the server keeps nothing of a lost stream.
    """

    def __iter__(self) -> Iterator[StreamEvent]:
        try:
            for sent in self._events:
                event = self._reader.read(sent.event, sent.data)
                if event is not None:
                    yield event
                if self._reader.is_done:
                    return
        except httpx2.RequestError as error:
            raise self._connection.error(error, self.request_id) from error
        self._reader.finish()


class AsyncSegmentStream(_Stream):
    """The same as SegmentStream, for ``async for``."""

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        try:
            async for sent in self._events:
                event = self._reader.read(sent.event, sent.data)
                if event is not None:
                    yield event
                if self._reader.is_done:
                    return
        except httpx2.RequestError as error:
            raise self._connection.error(error, self.request_id) from error
        self._reader.finish()
