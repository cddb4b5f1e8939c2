"""An OpenAI-compatible server on a real socket that answers from a script and fails on demand."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

Fault = Literal["reset", "end", "stall", "ping", "garbage", "error event", "html"]

MODEL = "/models/fake-model"
_END_TOKEN = "<|im_end|>"


@dataclass(frozen=True)
class Plan:
    """One answer: ``text`` in tokens of ``token_length``, ``delay_s`` before each. ``fault`` comes
    after ``fault_after`` tokens. A ``status`` other than 200 is the whole answer."""

    text: str = ""
    token_length: int = 4
    per_event: int = 1
    delay_s: float = 0.0
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    error: Mapping[str, Any] = field(default_factory=lambda: {"message": "no", "code": 500})
    fault: Fault | None = None
    fault_after: int = 0
    finish_reason: str = "stop"
    counts: bool = True
    cached_tokens: int | None = None
    logprobs: bool = True


@dataclass(frozen=True)
class Asked:
    """A request that came: its path, its headers in lower case, its JSON body."""

    path: str
    headers: Mapping[str, str]
    body: Any

    @property
    def instruction(self) -> str:
        return str(self.body["messages"][0]["content"][1]["text"])

    @property
    def warms_up(self) -> bool:
        return "the object" in self.instruction


Script = Callable[[Asked], Plan]


class FakeUpstream:
    """A server in a thread of its own. ``stop`` resets its connections; ``start`` listens on the
    same port again. ``asked`` holds the chat requests."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.health = 200
        self.models: list[dict[str, Any]] = [{"id": MODEL, "max_model_len": 4096}]
        self.asked: list[Asked] = []
        self._left: list[Asked] = []
        self.probes = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def left(self) -> list[Asked]:
        """Requests whose client hung up; at the end of a warm-up's answer it may always do so."""
        return [asked for asked in self._left if not asked.warms_up]

    @property
    def answered(self) -> list[Asked]:
        """The requests that came, but for those that warm up."""
        return [asked for asked in self.asked if not asked.warms_up]

    def start(self) -> None:
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    def stop(self) -> None:
        """As if the process had been killed."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        if self._server is None:
            return
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()
        self._server = None
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")
        _, path, _ = lines[0].split(" ")
        pairs = (line.split(": ", 1) for line in lines[1:] if line)
        headers = {name.lower(): value for name, value in pairs}
        length = int(headers.get("content-length", 0))
        content = await reader.readexactly(length) if length else b"null"
        asked = Asked(path, headers, json.loads(content))
        if path == "/health":
            self.probes += 1
            return await _whole(writer, self.health, {})
        if path == "/v1/models":
            return await _whole(writer, 200, {"data": self.models})
        self.asked.append(asked)
        return await self._chat(asked, self.script(asked), reader, writer)

    async def _chat(
        self,
        asked: Asked,
        plan: Plan,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        if plan.status != 200:
            return await _whole(writer, plan.status, {"error": plan.error}, plan.headers)
        kind = "text/html" if plan.fault == "html" else "text/event-stream; charset=utf-8"
        lines = ["HTTP/1.1 200 OK", f"content-type: {kind}", "transfer-encoding: chunked"]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        gone = asyncio.create_task(reader.read(1))
        try:
            async for event in _events(plan):
                if event is None:
                    writer.transport.abort()
                    return False
                writer.write(f"{len(event.encode()):x}\r\n{event}\r\n".encode())
                await writer.drain()
                if gone.done():
                    self._left.append(asked)
                    return False
            if plan.fault == "stall":
                await gone
                self._left.append(asked)
                return False
        except ConnectionError:
            self._left.append(asked)
            raise
        finally:
            gone.cancel()
            with suppress(asyncio.CancelledError, ConnectionError):
                await gone
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


async def _whole(
    writer: asyncio.StreamWriter,
    status: int,
    body: Any,
    headers: Mapping[str, str] | None = None,
) -> bool:
    content = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Status", f"content-length: {len(content)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    writer.write("\r\n".join([*lines, "", ""]).encode() + content)
    await writer.drain()
    return True


async def _events(plan: Plan) -> AsyncIterator[str | None]:
    """The text of each event; None for a reset."""
    size = plan.token_length
    tokens = [plan.text[at : at + size] for at in range(0, len(plan.text), size)]
    yield _event(plan, "", [], 0)
    for at in range(0, len(tokens), plan.per_event):
        if plan.fault is not None and at >= plan.fault_after:
            break
        await asyncio.sleep(plan.delay_s)
        some = tokens[at : at + plan.per_event]
        yield _event(plan, "".join(some), some, at + len(some))
    if plan.fault is None:
        yield _event(plan, "", [_END_TOKEN], len(tokens) + 1, plan.finish_reason)
        yield _data({"choices": [], "usage": _usage(plan, len(tokens) + 1)})
        yield "data: [DONE]\n\n"
    async for event in _faulty(plan):
        yield event


async def _faulty(plan: Plan) -> AsyncIterator[str | None]:
    fault = plan.fault
    if fault == "reset":
        await asyncio.sleep(0.02)  # what was written before is read before
        yield None
    elif fault == "garbage":
        yield "data: {not json\n\n"
    elif fault == "error event":
        yield _data({"error": plan.error})
    while fault == "ping":
        await asyncio.sleep(0.02)
        yield ": ping\n\n"


def _event(plan: Plan, text: str, tokens: list[str], count: int, reason: str | None = None) -> str:
    entries = [{"token": token, "logprob": -0.5} for token in tokens]
    choice = {
        "index": 0,
        "delta": {"content": text},
        "logprobs": {"content": entries} if plan.logprobs else None,
        "finish_reason": reason,
    }
    event: dict[str, Any] = {"choices": [choice]}
    if plan.counts:
        event["usage"] = _usage(plan, count)
    return _data(event)


def _usage(plan: Plan, completion_tokens: int) -> dict[str, Any]:
    usage: dict[str, Any] = {"prompt_tokens": 40, "completion_tokens": completion_tokens}
    if plan.cached_tokens is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": plan.cached_tokens}
    return usage


def _data(event: Any) -> str:
    return f"data: {json.dumps(event)}\n\n"
