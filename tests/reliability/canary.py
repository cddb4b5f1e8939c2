"""The canary: a real server beside which a test does its harm, and what must hold afterwards.

(a) A golden request right after is answered byte for byte as before. (b) The process is the same,
and its children are, unless the test says otherwise. (c) Its memory is back within 32 MiB; no more
descriptors, threads, tasks, children or temporary files than before. (d) Every request is in the
log and is counted once. (e) No secret, memory address, path or traceback is in an answer, in
the log or in the metrics.
"""

import base64
import http.client
import io
import json
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx2
import psutil
from PIL import Image

from ..server.processes import running

KEY = "canary-4f1e9b7c2d"
"""The API key of the canary's servers."""
MAX_GROWTH_BYTES = 32 * 2**20
SETTLING_S = 10.0
"""How long connections and slots may take to go after the last answer."""
_LEAKS = re.compile(rf"{KEY}|0x[0-9a-fA-F]{{8,}}|/home/|/usr/|/tmp/|site-packages|Traceback")
SERVER = str(Path(__file__).with_name("canary_server.py"))


def png(width: int = 200, height: int = 100) -> bytes:
    """A picture of one colour."""
    buffer = io.BytesIO()
    Image.new("1" if width * height > 10**6 else "RGB", (width, height), 1).save(buffer, "PNG")
    return buffer.getvalue()


def png64(width: int = 200, height: int = 100) -> str:
    return base64.b64encode(png(width, height)).decode()


IMAGE64 = png64()
GOLDEN = {"image": IMAGE64, "prompt": "the golden dog", "return": ["polygons", "bbox", "rle"]}


@dataclass(frozen=True)
class Holding:
    """What a process holds."""

    rss_bytes: int
    descriptors: int
    children: frozenset[int]
    threads: tuple[str, ...]
    tasks: int
    files: frozenset[str]


@dataclass
class Peak:
    """Known once it is over."""

    growth_bytes: int = 0


@dataclass
class Canary:
    """A running server with the key ``KEY``, and a client whose answers are looked through.

    ``may_restart`` says that the test ends the process or its children; ``secrets`` are further
    words that may be nowhere.
    """

    url: str
    ops_url: str
    process: psutil.Process
    log: Path
    temporary: Path
    key: str = KEY
    may_restart: bool = False
    secrets: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.client = self._connected()

    def hang_up(self) -> None:
        """Close the client's connections; it makes others when it asks again."""
        self.client.close()
        self.client = self._connected()

    def connections(self) -> int:
        """Those that the server holds."""
        every = self.process.net_connections("tcp")
        return sum(one.status == psutil.CONN_ESTABLISHED for one in every)

    def _connected(self) -> httpx2.Client:
        return httpx2.Client(
            base_url=self.url,
            headers={"X-API-Key": self.key},
            timeout=60,
            verify=False,  # the server speaks no TLS; to load the trusted roots takes a while
            event_hooks={"response": [self._hear]},
        )

    def _hear(self, response: httpx2.Response) -> None:
        if "event-stream" not in response.headers.get("content-type", ""):
            response.read()
            self.said.append(response.text)
        self.said.append(str(response.headers))

    def segment(self, **fields: Any) -> httpx2.Response:
        """The answer to ``POST /segment`` about a small picture, or that of ``fields``."""
        return self.client.post("/segment", json={"image": IMAGE64, "prompt": "a dog", **fields})

    def raw(self, data: bytes) -> bytes:
        """What the server answers to these bytes until it closes or falls silent for a second."""
        answer = exchange(self.url, data)
        self.said.append(answer.decode("latin-1"))
        return answer

    def golden(self) -> str:
        """The results of the golden request, as text."""
        response = self.client.post("/segment", json=GOLDEN)
        assert response.status_code == 200, response.text
        return json.dumps(response.json()["results"])

    def metrics(self) -> str:
        return fetched(self.ops_url, "/metrics").decode()

    def logged(self) -> int:
        """Requests that the log tells of, from the start on: of refusals one line may tell many."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        events = [line for line in lines if line.get("event") in ("request", "refused")]
        return sum(line.get("count", 1) for line in events)

    def held(self) -> Any:
        """What ``GET /-/held`` tells."""
        return json.loads(fetched(self.url, "/-/held", {"X-API-Key": self.key}))

    def asked(self) -> int:
        """How many prompts the engine has heard, the warm-up's included."""
        return int(self.held()["asked"])

    def instruction(self) -> str:
        """What the engine was asked last."""
        return str(self.held()["last"][-1][1])

    def engine_ids(self) -> list[str]:
        """The engine's names of the last few prompts."""
        return [name for name, _ in self.held()["last"]]

    @contextmanager
    def peak(self) -> Iterator["Peak"]:
        """The most memory that the process takes within the block, over what it has before."""
        reset = Path(f"/proc/{self.process.pid}/clear_refs")
        reset.write_text("5")
        before, peak = self.process.memory_info().rss, Peak()
        yield peak
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        [most] = re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
        peak.growth_bytes = int(most) * 1024 - before

    def holding(self) -> Holding:
        with self.process.oneshot():
            rss, descriptors = self.process.memory_info().rss, self.process.num_fds()
        children = self.process.children(recursive=True)
        held = self.held()
        return Holding(
            rss_bytes=rss + sum(child.memory_info().rss for child in children),
            descriptors=descriptors,
            children=frozenset(child.pid for child in children),
            threads=tuple(held["threads"]),
            tasks=held["tasks"],
            files=frozenset(str(path) for path in self.temporary.rglob("*")),
        )

    def counted(self) -> float:
        """Requests in the outcome counter, from the start on."""
        pattern = r"^simpleseg_requests_total\{.*\} ([\d.e+]+)$"
        return sum(map(float, re.findall(pattern, self.metrics(), re.MULTILINE)))


@contextmanager
def started(folder: Path, **settings: str) -> Iterator[Canary]:
    """A canary of its own, warmed up; ``settings`` as variables hold them."""
    temporary = Path(tempfile.mkdtemp(dir=folder))
    log = temporary.with_suffix(".log")
    chosen = {"port": "0", "ops_port": "0", "api_keys": KEY, **settings}
    arguments = [SERVER, *(f"{name}={value}" for name, value in chosen.items())]
    variables = {"TMPDIR": str(temporary)}
    with running(log, arguments, 2, variables) as (process, (url, ops_url)):
        canary = Canary(url, ops_url, psutil.Process(process.pid), log, temporary)
        for _ in range(8):
            canary.golden()
        try:
            yield canary
        finally:
            canary.client.close()


@contextmanager
def unharmed(canary: Canary) -> Iterator[Canary]:
    """Let the body do its harm, then assert what must hold."""
    golden = canary.golden()
    canary.hang_up()
    _assert_settles(lambda: "(c) connections" if canary.connections() else None)
    before = canary.holding()
    log_begin = canary.log.stat().st_size
    canary.said.clear()
    canary.secrets.clear()
    canary.may_restart = False
    yield canary
    assert canary.golden() == golden, "(a) the golden answer has changed"
    canary.hang_up()
    if not canary.may_restart:
        assert canary.process.is_running(), "(b) the process is another one"
        assert canary.holding().children == before.children, "(b) a child has gone or come"
    _assert_settles(lambda: _grown(before, canary.holding(), canary.may_restart))
    _assert_settles(lambda: _uncounted(canary))
    written = canary.log.read_bytes()[log_begin:].decode()
    for text in (*canary.said, written, canary.metrics()):
        found = _LEAKS.search(text) or next((s for s in canary.secrets if s in text), None)
        assert not found, f"(e) {found} was told"


def _grown(before: Holding, after: Holding, may_restart: bool) -> str | None:
    """(c) What the process holds more of than before."""
    if after.rss_bytes - before.rss_bytes > MAX_GROWTH_BYTES:
        return f"(c) {(after.rss_bytes - before.rss_bytes) / 2**20:.0f} MiB of memory"
    if after.files - before.files:
        return f"(c) temporary files: {len(after.files - before.files)}"
    for name in ("descriptors", "tasks"):
        more = getattr(after, name) - getattr(before, name)
        if more > 0:
            return f"(c) {name}: {more} more"
    if len(after.children) > len(before.children):
        return "(c) children"
    is_same = after.threads == before.threads or (
        may_restart and len(after.threads) <= len(before.threads)
    )
    return None if is_same else f"(c) threads: {before.threads} and now {after.threads}"


def _uncounted(canary: Canary) -> str | None:
    """(d) How log and counter disagree; the scrape itself is logged after it is counted."""
    counted, logged = canary.counted(), canary.logged()
    if counted not in (logged, logged - 1):
        return f"(d) {counted:.0f} requests counted, {logged} logged"
    return None


def _assert_settles(fault: Callable[[], str | None]) -> None:
    """Wait until nothing is at fault: connections close a moment after their last answer."""
    deadline = time.monotonic() + SETTLING_S
    while (found := fault()) is not None:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def address_of(url: str) -> tuple[str, int]:
    """
    >>> address_of("http://127.0.0.1:80"), address_of("http://[::1]:80")
    (('127.0.0.1', 80), ('::1', 80))
    """
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host.strip("[]"), int(port)


def fetched(url: str, path: str, headers: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """The body of an answer of 200, on a connection of its own."""
    with closing(http.client.HTTPConnection(*address_of(url), timeout=60)) as connection:
        connection.request("GET", path, headers=dict(headers))
        response = connection.getresponse()
        assert response.status == 200, path
        return response.read()


def posted(
    url: str, path: str, body: Any, headers: Mapping[str, str] = MappingProxyType({})
) -> tuple[int, Any]:
    """Status and JSON of an answer, on a connection of its own."""
    with closing(http.client.HTTPConnection(*address_of(url), timeout=60)) as connection:
        kind = {"Content-Type": "application/json"}
        connection.request("POST", path, json.dumps(body), {**kind, **headers})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def exchange(url: str, data: bytes, silence_s: float = 1.0) -> bytes:
    """Send bytes on a connection of their own; what comes back until its end or a silence."""
    answer = b""
    with socket.create_connection(address_of(url), silence_s) as connection:
        try:
            connection.sendall(data)
            while chunk := connection.recv(65536):
                answer += chunk
        except (TimeoutError, ConnectionError):
            pass
    return answer
