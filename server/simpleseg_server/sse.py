"""Server-sent events: events of ours -> the bytes of a ``text/event-stream``."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from typing import Any

from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from simpleseg_server.middleware import DRAINED

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Proxies must neither store a stream nor wait for its end."""


def encode(data: BaseModel, event: str | None = None) -> bytes:
    """One event; its JSON is one line, and fields that were never set are left out.

    >>> from simpleseg.schema import PolygonDone
    >>> encode(PolygonDone(result=0, polygon=1, n_points=4), "polygon").decode().splitlines()[0]
    'event: polygon'
    """
    name = "" if event is None else f"event: {event}\n"
    return f"{name}data: {data.model_dump_json(exclude_unset=True)}\n\n".encode()


def event_stream(*names: str, model: str) -> dict[str, Any]:
    """Of an OpenAPI document: events with these names, or without one, and data of a model. The end
    mark has no name."""
    schema = {"$ref": f"#/components/schemas/{model}"}
    as_json = {"contentMediaType": "application/json", "contentSchema": schema}
    data = {"type": "string", "anyOf": [{"const": "[DONE]"}, as_json]}
    event = {"event": {"type": "string", "enum": [*names, "message"]}} if names else {}
    item = {"type": "object", "required": ["data"], "properties": {**event, "data": data}}
    return {"text/event-stream": {"itemSchema": item}}


class EventStream(StreamingResponse):
    """An answer of server-sent events; ``held`` is closed when it ends, however it ends, also where
    the client left before it began. Once ``over`` is set it ends as ``kept_up`` says."""

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        held: AsyncExitStack,
        keep_alive_s: float,
        over: asyncio.Event,
    ) -> None:
        content = kept_up(chunks, keep_alive_s, over)
        super().__init__(content, media_type="text/event-stream", headers=_HEADERS)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            try:
                await super().__call__(scope, receive, send)
            except ClientDisconnect:
                return


async def kept_up(
    chunks: AsyncGenerator[bytes, None], interval_s: float, over: asyncio.Event
) -> AsyncIterator[bytes]:
    """The chunks, with a comment whenever none has come for ``interval_s`` seconds: proxies and
    clients close what is silent for long. Once ``over`` is set, what makes them is cancelled with
    ``DRAINED``, and may still give chunks that say so."""
    async with aclosing(chunks):
        coming = asyncio.ensure_future(anext(chunks))
        ending = asyncio.ensure_future(over.wait())
        awaited: set[asyncio.Future[Any]] = {ending}
        try:
            while True:
                await asyncio.wait(
                    {coming, *awaited}, timeout=interval_s, return_when=asyncio.FIRST_COMPLETED
                )
                if coming.done():
                    try:
                        chunk = coming.result()
                    except StopAsyncIteration:
                        return
                    yield chunk
                    coming = asyncio.ensure_future(anext(chunks))
                elif awaited and ending.done():
                    awaited.clear()
                    coming.cancel(DRAINED)
                else:
                    yield KEEP_ALIVE
        finally:
            coming.cancel()
            ending.cancel()
            await asyncio.gather(coming, ending, return_exceptions=True)
