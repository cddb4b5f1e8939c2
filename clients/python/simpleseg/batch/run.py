"""Asks about the entries of a batch."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

from simpleseg.async_client import AsyncSimpleSeg
from simpleseg.batch.journal import Journal
from simpleseg.batch.source import Entry, Source
from simpleseg.errors import (
    APITimeoutError,
    ResponseFormatError,
    ServerUnreachableError,
    SimpleSegError,
)
from simpleseg.protocol import (
    READY_PATH,
    SEGMENT_PATH,
    HttpRequest,
    HttpResponse,
    check_status,
    read_answer,
    request_of,
)
from simpleseg.retry import RETRIED_STATUSES
from simpleseg.schema import SegmentResponse

_REFUSALS = frozenset({401, 403, 429})
"""Statuses that the next item would get too: they are no item's fault and end the run."""


class Halt:
    """Whether the run is to end before its time, and why."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def because(self, reason: str) -> None:
        """The first reason counts."""
        self.reason = self.reason or reason


class Run:
    """Asks for ``entries``, and gives the line of each to ``record``, in a thread.

    Answers under way when ``halt`` gets a reason are waited for.
    """

    def __init__(
        self,
        entries: Iterator[Entry],
        record: Callable[[dict[str, Any]], None],
        client: AsyncSimpleSeg,
        halt: Halt,
    ) -> None:
        self._entries = entries
        self._record = record
        self._asker = Asker(client, halt)
        self._halt = halt

    async def run(self, concurrency: int) -> None:
        """So many at a time, until all are answered or ``halt`` has a reason. Raises what
        ``record`` raises."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(self._work())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures

    async def _work(self) -> None:
        while self._halt.reason is None:
            entry = next(self._entries, None)
            if entry is None:
                return
            answer = await self._asker.answer(entry)
            if answer is not None:
                await asyncio.to_thread(self._record, answer)


def missing(source: Source, journal: Journal) -> Iterator[Entry]:
    """What has no answer yet."""
    return (entry for entry in source.entries() if entry.custom_id not in journal.marks)


class Asker:
    """Asks about one entry at a time.

    What goes wrong with an item is its answer. What is the server's trouble instead gives ``halt``
    a reason and no answer, so that the next run asks again: it cannot be reached, refuses the key,
    or failed and is not ready since.
    """

    def __init__(self, client: AsyncSimpleSeg, halt: Halt) -> None:
        self._client = client
        self._halt = halt

    async def answer(self, entry: Entry) -> dict[str, Any] | None:
        """The line to record, None where there is nothing to say about the item."""
        try:
            body = await asyncio.to_thread(entry.body)
        except OSError as error:
            return _line(
                entry, None, None, _error("image_unreadable", error.strerror or "no image")
            )
        request = request_of("POST", SEGMENT_PATH, body)
        try:
            response = await self._client.send(request)
        except SimpleSegError as error:
            return await self._unanswered(entry, request, error)
        if await self._is_servers_trouble(response.status):
            self._halt.because(_reason(response))
            return None
        return _answered(entry, request, response)

    async def _unanswered(
        self, entry: Entry, request: HttpRequest, error: SimpleSegError
    ) -> dict[str, Any] | None:
        if isinstance(error, ServerUnreachableError) or not await self._is_ready():
            self._halt.because(str(error))
            return None
        code = "timeout" if isinstance(error, APITimeoutError) else "connection_lost"
        return _line(entry, request, None, _error(code, str(error)))

    async def _is_servers_trouble(self, status: int) -> bool:
        if status in _REFUSALS:
            return True
        return status in RETRIED_STATUSES and not await self._is_ready()

    async def _is_ready(self) -> bool:
        try:
            return (await self._client.send(request_of("GET", READY_PATH))).status == 200
        except SimpleSegError:
            return False


def _reason(response: HttpResponse) -> str:
    try:
        check_status(response)
    except SimpleSegError as error:
        return str(error)
    raise AssertionError("only what went wrong has a reason")


def _answered(entry: Entry, request: HttpRequest, response: HttpResponse) -> dict[str, Any]:
    try:
        if response.status == 200:
            read_answer(response, SegmentResponse)
        body = json.loads(response.content)
    except (ResponseFormatError, ValueError):
        message = f"the answer of status {response.status} is not this server's"
        return _line(entry, request, None, _error("response_invalid", message))
    said = {
        "status_code": response.status,
        "request_id": response.request_id or request.request_id,
        "body": body,
    }
    return _line(entry, request, said, None)


def _line(
    entry: Entry,
    request: HttpRequest | None,
    response: dict[str, Any] | None,
    error: dict[str, str] | None,
) -> dict[str, Any]:
    """A line of OpenAI's batch output, and what it answers."""
    name = entry.digest if request is None else request.request_id.removeprefix("req_")
    return {
        "id": f"batch_req_{name}",
        "custom_id": entry.custom_id,
        "response": response,
        "error": error,
        "request_digest": entry.digest,
    }


def died(entry: Entry) -> dict[str, Any]:
    """The line of an item that ended every process that worked on it."""
    return _line(entry, None, None, _error("worker_died", "the item ends the process"))


def _error(code: str, message: str) -> dict[str, str]:
    return {"code": code, "message": message}
