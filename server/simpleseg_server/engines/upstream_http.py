"""What is said to an upstream over HTTP, and how its answers and refusals read.

The API keys stay in this module's headers; no message here holds a key, a prompt or an image.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any

import httpx2

from simpleseg.retry import requested_delay_s
from simpleseg_server.engines.base import EngineError, FinishReason, TokenLogprob
from simpleseg_server.engines.upstreams import Upstream
from simpleseg_server.tracing import outgoing_headers

REQUEST_AT_FAULT = frozenset({400, 413, 415, 422})
"""Statuses that every upstream would answer the same request with."""

_BUSY = frozenset({429, 503})
_UNFIT = frozenset({401, 403, 404})
_DONE = "[DONE]"
# Less than the 5 seconds of uvicorn, so that it is we who close a connection that is not used.
_KEPT_ALIVE_S = 2.0
_MOST_ERROR_BYTES = 2**16


class UpstreamError(EngineError):
    """An upstream did not answer; another one might. ``decisive``: nobody listens there."""

    def __init__(self, message: str, *, decisive: bool = False) -> None:
        super().__init__(message)
        self.decisive = decisive


class UpstreamBusyError(UpstreamError):
    """An upstream has too much to do; ``retry_after_s`` is the wait that it asks for."""

    def __init__(self, message: str, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UpstreamUnfitError(UpstreamError):
    """An upstream takes none of our requests: a wrong key, a model or a route that it has not."""


class RequestRefusedError(EngineError):
    """The request itself is at fault. ``detail`` is the upstream's own text, which may repeat what
    was sent to it."""

    def __init__(self, message: str, detail: str) -> None:
        super().__init__(message)
        self.detail = detail


@dataclass(frozen=True)
class Timeouts:
    """Seconds: to connect, for a probe, to the answer's first token, between its tokens."""

    connect_s: float = 5.0
    probe_s: float = 5.0
    first_token_s: float = 120.0
    idle_s: float = 30.0


@dataclass(frozen=True)
class ServedModel:
    """An entry of ``/v1/models``; the length of the context is not always told."""

    id: str
    max_model_len: int | None


@dataclass(frozen=True)
class ChatEvent:
    """One event of an answer: its text and tokens, how it ended, and the tokens counted so far (0
    where that is not told; None for those of the prompt that were computed for an earlier one)."""

    text: str = ""
    tokens: tuple[TokenLogprob, ...] = ()
    end: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None


class UpstreamClient:
    """The connections to all upstreams: at most ``max_connections`` for answers, and some of their
    own for probes, which must not wait behind answers. Use it on one event loop, then close it."""

    def __init__(self, max_connections: int, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._answers = httpx2.AsyncClient(
            limits=httpx2.Limits(max_connections=max_connections, keepalive_expiry=_KEPT_ALIVE_S),
            # How long an answer may take is up to ``_in_time``: bytes that keep a connection alive
            # are no progress.
            timeout=httpx2.Timeout(None, connect=timeouts.connect_s, write=timeouts.idle_s),
        )
        self._probes = httpx2.AsyncClient(
            limits=httpx2.Limits(max_connections=16, max_keepalive_connections=0),
            timeout=httpx2.Timeout(timeouts.probe_s, connect=timeouts.connect_s),
        )
        self._waits: set[asyncio.Timeout] = set()
        self._is_closed = False

    async def close(self) -> None:
        """Fail what is still waiting, then close the connections."""
        self._is_closed = True
        now = asyncio.get_running_loop().time()
        for wait in self._waits:
            wait.reschedule(now)
        await self._answers.aclose()
        await self._probes.aclose()

    async def check(self, upstream: Upstream) -> None:
        """Ask for its health. Raises UpstreamError; servers without the route are asked for their
        models."""
        response = await self._get(upstream, "/health")
        if response.status_code == 404:
            response = await self._get(upstream, "/v1/models")
        if response.status_code != 200:
            raise UpstreamError(f"{upstream.address.url} says status {response.status_code}")

    async def models(self, upstream: Upstream) -> list[ServedModel]:
        """What it serves, its main model first. Raises UpstreamError."""
        response = await self._get(upstream, "/v1/models")
        if response.status_code != 200:
            raise _as_error(upstream, response.status_code, {})
        try:
            entries = response.json()["data"]
            return [ServedModel(str(one["id"]), _length(one)) for one in entries]
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UpstreamError(f"{upstream.address.url} lists no models") from None

    async def _get(self, upstream: Upstream, path: str) -> httpx2.Response:
        try:
            return await self._probes.get(upstream.address.url + path, headers=_headers(upstream))
        except httpx2.HTTPError as error:
            raise _lost(upstream, error) from error

    async def chat(
        self, upstream: Upstream, body: Mapping[str, Any]
    ) -> AsyncGenerator[ChatEvent, None]:
        """The events of an answer; closing the iterator cancels it there.

        Raises UpstreamError and RequestRefusedError. An answer that just breaks off ends quietly.
        """
        url = f"{upstream.address.url}/v1/chat/completions"
        async with (
            aclosing(self._events(upstream, url, body)) as events,
            aclosing(self._in_time(upstream, events)) as punctual,
        ):
            async for event in punctual:
                yield event

    async def _events(
        self, upstream: Upstream, url: str, body: Mapping[str, Any]
    ) -> AsyncGenerator[ChatEvent, None]:
        headers = {"Content-Type": "application/json"} | _headers(upstream) | outgoing_headers()
        content = await asyncio.to_thread(_encoded, body)
        try:
            async with self._answers.stream(
                "POST", url, content=content, headers=headers
            ) as response:
                if response.status_code != 200:
                    raise await _refusal(upstream, response)
                async for event in httpx2.EventSource(response):
                    if event.data == _DONE:
                        return
                    yield _chat_event(upstream, event.data)
        except httpx2.HTTPError as error:
            raise _lost(upstream, error) from error

    async def _in_time(
        self, upstream: Upstream, events: AsyncGenerator[ChatEvent, None]
    ) -> AsyncGenerator[ChatEvent, None]:
        limit_s = self._timeouts.first_token_s
        while True:
            try:
                event = await self._next(events, limit_s)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise UpstreamError(
                    f"{upstream.address.url} wrote nothing for {limit_s:g} s"
                ) from None
            yield event
            if event.text or event.tokens:
                limit_s = self._timeouts.idle_s

    async def _next(self, events: AsyncGenerator[ChatEvent, None], limit_s: float) -> ChatEvent:
        if self._is_closed:
            raise TimeoutError
        async with asyncio.timeout(limit_s) as wait:
            self._waits.add(wait)
            try:
                return await anext(events)
            finally:
                self._waits.discard(wait)


def _headers(upstream: Upstream) -> dict[str, str]:
    return {} if upstream.api_key is None else {"Authorization": f"Bearer {upstream.api_key}"}


def _length(entry: Mapping[str, Any]) -> int | None:
    length = entry.get("max_model_len")
    return length if isinstance(length, int) and length > 0 else None


def _encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode()


async def _beginning(response: httpx2.Response) -> bytes:
    content = b""
    async for piece in response.aiter_bytes():
        content += piece
        if len(content) > _MOST_ERROR_BYTES:
            break
    return content


def _lost(upstream: Upstream, error: httpx2.HTTPError) -> UpstreamError:
    """The name of the error says enough; its text is the library's."""
    decisive = isinstance(error, httpx2.ConnectError)
    words = "cannot be reached" if decisive else "broke off"
    return UpstreamError(
        f"{upstream.address.url} {words} ({type(error).__name__})", decisive=decisive
    )


async def _refusal(upstream: Upstream, response: httpx2.Response) -> EngineError:
    detail: Mapping[str, Any] = {}
    with suppress(ValueError):
        detail = _error_of(json.loads(await _beginning(response)))
    headers = {name.lower(): value for name, value in response.headers.items()}
    return _as_error(upstream, response.status_code, detail, requested_delay_s(headers))


def _error_of(body: Any) -> Mapping[str, Any]:
    """The error's object: OpenAI's and vLLM's is inside, LMDeploy's and SGLang's may not be."""
    inner = body.get("error", body) if isinstance(body, dict) else {}
    return inner if isinstance(inner, dict) else {"message": str(inner)}


def _as_error(
    upstream: Upstream, status: int, detail: Mapping[str, Any], retry_after_s: float | None = None
) -> EngineError:
    message = f"{upstream.address.url} answered with status {status}"
    if status in REQUEST_AT_FAULT:
        return RequestRefusedError(message, str(detail.get("message", ""))[:300])
    if status in _BUSY:
        return UpstreamBusyError(message, retry_after_s)
    if status in _UNFIT:
        return UpstreamUnfitError(message)
    return UpstreamError(message)


def _chat_event(upstream: Upstream, data: str) -> ChatEvent:
    try:
        event = json.loads(data)
        if "error" in event:
            raise _as_error(upstream, _code(_error_of(event)), _error_of(event))
        return _read(event)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UpstreamError(f"{upstream.address.url} sent what is no chat event") from None


def _code(error: Mapping[str, Any]) -> int:
    """The status that an error in the middle of a stream stands for."""
    code = error.get("code")
    return code if isinstance(code, int) else 500


def _read(event: Mapping[str, Any]) -> ChatEvent:
    """Raises ValueError, TypeError or KeyError for what is none; EngineError for an answer that the
    upstream gave up."""
    usage = event.get("usage") or {}
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    counted = ChatEvent(
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or 0),
        cached_tokens=None if cached is None else int(cached),
    )
    choices = event["choices"]
    if not choices:
        return counted
    [choice] = choices
    text = (choice.get("delta") or {}).get("content") or ""
    if not isinstance(text, str):
        raise TypeError
    tokens, end = _tokens(choice.get("logprobs")), _end(choice.get("finish_reason"))
    return replace(counted, text=text, tokens=tokens, end=end)


def _tokens(logprobs: Mapping[str, Any] | None) -> tuple[TokenLogprob, ...]:
    entries = (logprobs or {}).get("content") or ()
    return tuple(TokenLogprob(str(one["token"]), float(one["logprob"])) for one in entries)


def _end(reason: Any) -> FinishReason | None:
    if reason is None or reason == "stop" or reason == "length":
        return reason  # type: ignore[no-any-return]
    raise UpstreamError("an upstream gave the answer up")
