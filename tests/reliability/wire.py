"""HTTP as bytes on a socket, for what no client library would send."""

import base64
import io
import json
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2
from PIL import Image

PATIENCE_S = 60.0
"""No test waits longer for a byte; a busy machine may take a while for one."""


def picture() -> str:
    """A small PNG in base64."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


IMAGE = picture()


def body_of(prompt: str = "x", **fields: Any) -> dict[str, Any]:
    return {"image": IMAGE, "prompt": prompt, **fields}


def request(
    method: str = "POST",
    path: str = "/segment",
    body: bytes | dict[str, Any] = b"",
    headers: Iterable[str] = (),
    host: str | None = "test",
) -> bytes:
    """A whole request; a length goes with a body, unless the headers tell of one."""
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    lines = [f"{method} {path} HTTP/1.1", *([] if host is None else [f"Host: {host}"]), *headers]
    names = {line.partition(":")[0].lower() for line in headers}
    if data and not names & {"content-length", "transfer-encoding"}:
        lines.append(f"Content-Length: {len(data)}")
    if data and "content-type" not in names:
        lines.append("Content-Type: application/json")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + data


@dataclass(frozen=True)
class Answer:
    """What came on a connection up to its end: the last answer, and what came before it."""

    status: int
    headers: dict[str, str]
    body: bytes
    interim: tuple[int, ...] = ()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])


class Connection:
    """A client's end of a connection."""

    def __init__(self, url: str, receive_buffer: int | None = None) -> None:
        parts = urlsplit(url)
        self.socket = socket.socket()
        self.socket.settimeout(PATIENCE_S)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            self.socket.connect((parts.hostname, parts.port))
        except OSError:
            self.socket.close()
            raise
        self._read = b""

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def dribble(self, data: bytes, pause_s: float) -> None:
        """Byte by byte, until the server closes."""
        for byte in data:
            if self._is_over():
                return
            with suppress(OSError):
                self.send(bytes([byte]))
            time.sleep(pause_s)

    def _is_over(self) -> bool:
        self.socket.setblocking(False)
        try:
            came = self.socket.recv(65536)
            self._read += came
            return not came
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self.socket.settimeout(PATIENCE_S)

    def read_to_end(self) -> bytes:
        """Everything up to the server's end of the connection; raises where it is reset."""
        while came := self.socket.recv(65536):
            self._read += came
        data, self._read = self._read, b""
        return data

    def answer(self) -> Answer:
        """The next answer with a length, of which interim ones are a part."""
        interim: list[int] = []
        while True:
            while b"\r\n\r\n" not in self._read:
                self._more()
            head, _, self._read = self._read.partition(b"\r\n\r\n")
            status_line, *lines = head.decode("latin-1").split("\r\n")
            status = int(status_line.split()[1])
            if status >= 200:
                break
            interim.append(status)
        pairs = (line.split(": ", 1) for line in lines)
        headers = {name.lower(): value for name, value in pairs}
        length = int(headers.get("content-length", 0))
        while len(self._read) < length:
            self._more()
        body, self._read = self._read[:length], self._read[length:]
        return Answer(status, headers, body, tuple(interim))

    def _more(self) -> None:
        came = self.socket.recv(65536)
        if not came:
            raise EOFError(f"the server closed after {self._read!r}")
        self._read += came

    def is_closed(self) -> bool:
        """Wait until the server has closed, with nothing more to say."""
        return self.read_to_end() == b""


def ask(url: str, data: bytes) -> Answer:
    """The first answer to some bytes on a connection of their own."""
    with Connection(url) as connection:
        connection.send(data)
        return connection.answer()


def gauge(url: str, name: str) -> float:
    """A metric of a server that is asked at its listener for operations; 0 where there is none."""
    for line in httpx2.get(f"{url}/metrics", timeout=PATIENCE_S).text.splitlines():
        if line.startswith((f"{name} ", f"{name}{{")):
            return float(line.rpartition(" ")[2])
    return 0.0
