"""What the load generator itself costs, and the rate where it becomes the bottleneck.

    python benchmarks/load_ceiling.py [--quick] [--json]

The server is trivial: a process that gives the same answer to everything at once. For both
endpoints, streamed and not, a closed loop of 32 users asks it as fast as the generator can, with
images of 190 kB in the mean; a stream has 30 events of points, or 120 of tokens, one every 2 ms.
CPU time is the generator's own, so that other work on the machine counts less.

With ``--json`` the last line printed is one object: for each kind of request ``cpu_ms``, the
generator's CPU time for each, ``per_s``, how many there were each second, ``ceiling_per_s``, how
many a whole core would allow, and ``cpu_share`` of a core.
"""

import argparse
import asyncio
import json
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from provenance import provenance

from simpleseg.bench.load import Load, run_load
from simpleseg.bench.questions import load_questions
from simpleseg.bench.wire import Endpoint, Target

USERS, EVENT_S = 32, 0.002
END = 5  # finish reason, usage, mark, nothing, and the last token itself
RING = [[round(0.1 + number / 50, 3), 0.123 + number % 2 / 2] for number in range(30)]
TEXT = json.dumps([RING])
PIECES = [TEXT[at : at + 4] for at in range(0, len(TEXT), 4)]
USAGE = {"prompt_tokens": 38, "completion_tokens": 120, "total_tokens": 158}
RESPONSE = {
    "results": [{"index": 0, "status": "ok", "polygons": [RING]}],
    "usage": USAGE,
    "timings_ms": {"first_token": 1.0},
}


def event(data: Any, name: str | None = None) -> bytes:
    return (f"event: {name}\n" if name else "").encode() + f"data: {json.dumps(data)}\n\n".encode()


def segment_stream() -> bytes:
    points = {"result": 0, "polygon": 0, "points": RING[:1]}
    deltas = event(points, "segmentation.points.delta") * len(RING)
    done = event({"response": RESPONSE}, "segmentation.completed")
    return deltas + done + b"data: [DONE]\n\n"


def chat_stream() -> bytes:
    def chunk(content: str | None, reason: str | None = None) -> bytes:
        delta = {"content": content}
        return event({**kind, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

    kind = {"object": "chat.completion.chunk", "model": "trivial"}
    usage = event({**kind, "choices": [], "usage": USAGE})
    return b"".join(map(chunk, PIECES)) + chunk(None, "stop") + usage + b"data: [DONE]\n\n"


def chat() -> bytes:
    choice = {"message": {"content": TEXT}, "finish_reason": "stop"}
    kind = {"object": "chat.completion", "model": "trivial"}
    return json.dumps({**kind, "choices": [choice], "usage": USAGE}).encode()


ANSWERS: dict[tuple[Endpoint, bool], bytes] = {
    ("segment", False): json.dumps(RESPONSE).encode(),
    ("segment", True): segment_stream(),
    ("chat", False): chat(),
    ("chat", True): chat_stream(),
}


class Trivial(asyncio.Protocol):
    """Answers every request with a content-length; a stream is written event by event."""

    def __init__(self) -> None:
        self._received, self._length = bytearray(), 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, _ = bytes(self._received[:1024]).partition(b"\r\n\r\n")
        if found:
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            length = len(head) + 4 + int(fields.get(b"content-length", 0))
            if len(self._received) >= length:
                self._answer(head.split(b" ")[1], bytes(self._received[-64:]))
                del self._received[:length]

    def _answer(self, path: bytes, end: bytes) -> None:
        is_stream = b'"stream":true' in end.replace(b" ", b"")
        answer = ANSWERS["chat" if b"chat" in path else "segment", is_stream]
        kind = b"text/event-stream" if is_stream else b"application/json"
        head = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
        self._transport.write(head % (kind, len(answer)))
        loop, parts = asyncio.get_running_loop(), answer.split(b"\n\n")
        for number, part in enumerate(parts):
            end = b"\n\n" if number < len(parts) - 1 else b""
            after = min(number, len(parts) - END)  # what follows the last token comes with it
            loop.call_later(max(0, after) * EVENT_S, self._transport.write, part + end)


def serve(told: Connection) -> None:
    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Trivial, "127.0.0.1", 0)
        told.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def trivial_server() -> Iterator[str]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        process.terminate()
        process.join()


def measure(url: str, endpoint: Endpoint, *, stream: bool, seconds: float) -> dict[str, float]:
    target = Target(url, endpoint, stream, model="trivial")
    load = Load("closed", USERS, duration_s=seconds, warmup_s=1)
    result = run_load(target, load_questions("demo-multi", limit=16), load)
    if result.errors or result.flaws:
        raise SystemExit(f"the trivial server failed: {result.errors} {result.flaws}")
    cpu_s = result.cpu_s / len(result.samples)
    return {
        "cpu_ms": round(1e3 * cpu_s, 3),
        "per_s": round(result.requests_per_s, 1),
        "ceiling_per_s": round(1 / cpu_s, 1),
        "cpu_share": round(result.cpu_share, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one object on the last line")
    parser.add_argument("--quick", action="store_true", help="3 seconds of each, not 15")
    options = parser.parse_args()
    seconds = 3.0 if options.quick else 15.0
    inputs = "images of 190 kB in the mean"
    figures = provenance("aiohttp", "hdrhistogram", model=None, inputs=inputs) | {"users": USERS}
    with trivial_server() as url:
        for endpoint, stream in ANSWERS:
            name = f"{endpoint}{'_stream' if stream else ''}"
            figures[name] = measure(url, endpoint, stream=stream, seconds=seconds)
            print(f"{name:<16} {figures[name]}")
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
