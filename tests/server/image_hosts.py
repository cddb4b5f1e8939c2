"""Servers that images are fetched from, good and bad, on local sockets; and the network around."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address

from simpleseg_server.addresses import IPAddress
from simpleseg_server.fetch import Network

PUBLIC = "127.0.0.1"
"""Stands for a public address."""
PRIVATE = "127.0.0.9"
"""Stands for one that is not."""

Answer = Callable[["Host", asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Host:
    """A server: ``heads`` are the requests that it got, ``open`` counts its connections, ``sent``
    its bytes; ``ended`` is set when the other side closes a connection first."""

    port: int = 0
    heads: list[str] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    open: int = 0
    sent: int = 0

    def url(self, path: str = "/x.png", host: str = "host.test", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    async def write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(data)
        self.sent += len(data)
        await writer.drain()


@asynccontextmanager
async def serving(
    answer: Answer, address: str = PUBLIC, port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Host]:
    """A host at an address that answers every request with ``answer``."""
    host = Host()
    handlers: set[asyncio.Task[None] | None] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        host.open += 1
        try:
            await _talk(host, answer, reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            host.ended.set()
        host.open -= 1
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(handle, address, port, ssl=tls)
    host.port = server.sockets[0].getsockname()[1]
    try:
        yield host
    finally:
        server.close()
        left = [task for task in handlers if task is not None]
        await asyncio.wait_for(asyncio.gather(*left, return_exceptions=True), 30)


async def _talk(
    host: Host, answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """One request and its answer, for as long as the other side listens."""
    head = await reader.readuntil(b"\r\n\r\n")
    host.heads.append(head.decode())
    answering = asyncio.ensure_future(answer(host, writer))
    leaving = asyncio.ensure_future(reader.read())
    await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
    if not answering.done():
        host.ended.set()
    for task in (answering, leaving):
        task.cancel()
    await asyncio.gather(answering, leaving, return_exceptions=True)


def saying(data: bytes) -> Answer:
    """Says this and hangs up."""

    async def answer(host: Host, writer: asyncio.StreamWriter) -> None:
        await host.write(writer, data)

    return answer


def response(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    """A whole response; a header's name has underscores for hyphens."""
    lines = [f"HTTP/1.1 {status}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def redirecting(*targets: str, status: str = "302 Found") -> Answer:
    """Redirects to each of these in turn, the last one again and again."""
    left = list(targets)

    async def answer(host: Host, writer: asyncio.StreamWriter) -> None:
        target = left.pop(0) if len(left) > 1 else left[0]
        location = target.replace("PORT", str(host.port))
        await host.write(writer, response(b"", status, Location=location))

    return answer


def stalling(data: bytes = b"") -> Answer:
    """Says this and then nothing."""

    async def answer(host: Host, writer: asyncio.StreamWriter) -> None:
        await host.write(writer, data)
        await asyncio.Event().wait()

    return answer


def endless(head: bytes, piece: bytes, pause_s: float = 0.0) -> Answer:
    """Says this, and then the same again and again."""

    async def answer(host: Host, writer: asyncio.StreamWriter) -> None:
        await host.write(writer, head)
        while True:
            await host.write(writer, piece)
            await asyncio.sleep(pause_s)

    return answer


@dataclass
class Names:
    """A resolver: what each name stands for, one answer after the other and the last one for ever;
    ``asked`` are the names that it was asked for."""

    answers: Mapping[str, list[tuple[str, ...]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def __call__(self, host: str) -> tuple[IPAddress, ...]:
        self.asked.append(host)
        left = self.answers.get(host, [(PUBLIC,)])
        answer = left.pop(0) if len(left) > 1 else left[0]
        if not answer:
            raise OSError
        return tuple(map(ip_address, answer))


def world(
    *hosts: Host,
    names: Names | None = None,
    tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
) -> Network:
    """A network in which ``PUBLIC`` is the only open address, with these hosts' ports open."""
    return Network(
        resolve=names or Names(),
        is_open=lambda address: str(address) == PUBLIC,
        ports=frozenset(host.port for host in hosts),
        tls=tls,
    )
