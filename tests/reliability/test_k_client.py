"""Section K: the client, and servers that behave badly."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from simpleseg import AsyncSimpleSeg, SimpleSeg
from simpleseg.errors import (
    APIConnectionError,
    APITimeoutError,
    InternalServerError,
    InvalidInputError,
    ResponseFormatError,
    SimpleSegError,
    StreamError,
)

from .canary import png

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
GZIP = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 6\r\n\r\n<html>"
GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>"


class Server:
    """Reads a request of any length and answers with ``data``, then with ``drip`` again and again
    until the client has gone; with ``stays`` it says nothing until then. ``connections`` counts."""

    def __init__(self, data: bytes, drip: bytes = b"", stays: bool = False) -> None:
        self.data, self.drip, self.stays, self.connections = data, drip, stays, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(0.2)
        try:
            while connection.recv(65536):
                pass
        except TimeoutError:
            pass
        try:
            connection.sendall(self.data)
            while self.drip:
                connection.sendall(self.drip)
                time.sleep(0.01)
            if self.stays:
                connection.settimeout(60)
                connection.recv(1)
        except OSError:
            return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@contextmanager
def serving(data: bytes, drip: bytes = b"", stays: bool = False) -> Iterator[Server]:
    server = Server(data, drip, stays)
    try:
        yield server
    finally:
        server.close()


def ask(kind: str, url: str, image: Any = png(), **options: Any) -> Any:  # noqa: B008
    """One question through either client, without retries."""
    if kind == "sync":
        with SimpleSeg(url, max_retries=0, **options) as client:
            return client.segment(image, "a dog")

    async def run() -> Any:
        async with AsyncSimpleSeg(url, max_retries=0, **options) as client:
            return await client.segment(image, "a dog")

    return asyncio.run(run())


DEATHS: dict[str, tuple[bytes, type[SimpleSegError]]] = {
    "nothing": (b"", APIConnectionError),
    "half a head": (HEAD[:30], APIConnectionError),
    "half a body": (HEAD + b'{"id": "seg', APIConnectionError),
    "no JSON": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{nope", ResponseFormatError),
    "a page": (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", ResponseFormatError),
    "a proxy's page": (GATEWAY, InternalServerError),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n", APIConnectionError),
    "half a chunk": (CHUNKED + b"ffff\r\n{", APIConnectionError),
    "no gzip": (GZIP, APIConnectionError),
    "no UTF-8": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xfe", ResponseFormatError),
    "another object": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", ResponseFormatError),
}


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("death", DEATHS)
def test_K2_servers_that_die(kind: str, death: str) -> None:
    data, error = DEATHS[death]
    with serving(data) as server, pytest.raises(error):
        ask(kind, server.url)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_K2_a_server_that_never_ends(kind: str) -> None:
    """A body that comes byte by byte ends at the timeout, although no single wait is long."""
    with serving(HEAD, b" ") as server, pytest.raises(APITimeoutError):
        ask(kind, server.url, timeout=1.0)


def listen(kind: str, url: str, **options: Any) -> None:
    """Hear a stream to its end, through either client."""
    if kind == "sync":
        with (
            SimpleSeg(url, max_retries=0, **options) as client,
            client.stream(png(), "a dog") as stream,
        ):
            list(stream)
        return

    async def run() -> None:
        async with (
            AsyncSimpleSeg(url, max_retries=0, **options) as client,
            client.stream(png(), "a dog") as stream,
        ):
            _ = [event async for event in stream]

    asyncio.run(run())


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
ERROR = {"code": "draining", "message": "over", "type": "overloaded_error", "request_id": "r"}
STREAM_DEATHS: dict[str, tuple[bytes, type[SimpleSegError]]] = {
    "nothing": (STREAM, APIConnectionError),
    "half an event": (STREAM + b"event: segmentation.created\ndata: {", APIConnectionError),
    "a comment": (STREAM + b": hi\n\n", APIConnectionError),
    "an end without a result": (STREAM + b"data: [DONE]\n\n", APIConnectionError),
    "no JSON": (STREAM + b"event: segmentation.created\ndata: {\n\n", ResponseFormatError),
    "no event of ours": (STREAM + b"event: error\ndata: <html>\n\n", ResponseFormatError),
    "an error": (
        STREAM + b"event: error\ndata: " + json.dumps({"error": ERROR}).encode() + b"\n\n",
        StreamError,
    ),
    "a page": (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", ResponseFormatError),
    "a proxy's page": (GATEWAY, InternalServerError),
    "no gzip": (
        STREAM.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") + b"<html>",
        APIConnectionError,
    ),
}


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("death", STREAM_DEATHS)
def test_K2_streams_that_die(kind: str, death: str) -> None:
    data, error = STREAM_DEATHS[death]
    with serving(data) as server, pytest.raises(error):
        listen(kind, server.url)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_K2_a_stream_that_falls_silent(kind: str) -> None:
    """Not even its comments come any more, and the connection stays."""
    with serving(STREAM + b": hi\n\n", stays=True) as server, pytest.raises(APITimeoutError):
        listen(kind, server.url, timeout=1.0)


def bad_images(folder: Path) -> Iterator[tuple[Any, type[Exception], str]]:
    """What is no image, the error that says so, and a word of it."""
    text, empty = folder / "notes.txt", folder / "empty.png"
    text.write_text("no picture at all")
    empty.touch()
    secret = folder / "secret.png"
    secret.write_bytes(png())
    secret.chmod(0)
    yield folder, IsADirectoryError, folder.name
    yield text, InvalidInputError, "not an image"
    yield str(text), InvalidInputError, "not an image"
    yield b"%PDF-1.7", InvalidInputError, "not an image"
    yield b"<!doctype html>", InvalidInputError, "not an image"
    yield empty, InvalidInputError, "empty"
    yield folder / "none.png", FileNotFoundError, "none.png"
    yield " http://example.org/a b.png", FileNotFoundError, "example.org"
    yield "file:///etc/passwd", FileNotFoundError, "passwd"
    yield 7, InvalidInputError, "int"
    try:
        secret.read_bytes()
    except PermissionError:  # not where the tests run as root
        yield secret, PermissionError, "secret.png"


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_K3_bad_images_and_urls(kind: str, tmp_path: Path) -> None:
    with serving(b"") as server:
        for image, error, words in bad_images(tmp_path):
            with pytest.raises(error, match=words):
                ask(kind, server.url, image)
        for url in ("127.0.0.1:8000", "ftp://x", "", "http//x"):
            if url:
                with pytest.raises(InvalidInputError, match="http"):
                    ask(kind, url)
        with pytest.raises(SimpleSegError):
            ask(kind, "http://127.0.0.1:9 9/")
        assert server.connections == 0


def test_K3_another_event_loop() -> None:
    with serving(GATEWAY) as server:
        client = AsyncSimpleSeg(server.url, max_retries=0)
        with pytest.raises(InternalServerError):
            asyncio.run(client.segment(png(), "a dog"))
        with pytest.raises(SimpleSegError, match="another event loop"):
            asyncio.run(client.segment(png(), "a dog"))
        assert server.connections == 1
