"""The catalogue's section E: what clients do to HTTP."""

import gzip
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx2
import pytest

from ..server.processes import scripted_server, status_of, wait_for
from .wire import Connection, ask, body_of, gauge, request

MAX_BODY = 200_000


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The main listener of a server with short limits, and the one for operations."""
    log = tmp_path_factory.mktemp("http") / "log"
    settings = {
        "ops_port": "0",
        "header_timeout_s": "2",
        "body_timeout_s": "2",
        "write_timeout_s": "2",
        "idle_timeout_s": "2",
        "max_body_bytes": str(MAX_BODY),
        "max_connections": "40",
    }
    with scripted_server(log, **settings) as (_, (main, ops)):
        yield main, ops


@pytest.fixture
def url(urls: tuple[str, str]) -> str:
    return urls[0]


def test_E1_slow_header(url: str) -> None:
    with Connection(url) as slow:
        slow.dribble(request(headers=[f"X-{n}: {'y' * 50}" for n in range(20)]), 0.05)
        answer = slow.answer()
        assert (answer.status, answer.code) == (408, "header_timeout")
        assert answer.headers["connection"] == "close"
        assert slow.is_closed()


def test_E1_slow_header_after_a_request(url: str) -> None:
    with Connection(url) as slow:
        slow.send(request("GET", "/livez"))
        assert slow.answer().status == 200
        slow.dribble(request(headers=[f"X-{n}: {'y' * 50}" for n in range(20)]), 0.05)
        assert slow.answer().code == "header_timeout"
        assert slow.is_closed()


def test_E1_slow_body(url: str) -> None:
    with Connection(url) as slow:
        slow.send(request(headers=["Content-Length: 5000"]))
        slow.dribble(b" " * 5000, 0.05)
        answer = slow.answer()
        assert (answer.status, answer.code) == (408, "body_timeout")
        assert slow.is_closed()


def test_E1_silent_connection(url: str) -> None:
    with Connection(url) as silent:
        assert silent.is_closed()


def test_E1_slow_body_that_no_route_reads(url: str) -> None:
    with Connection(url) as slow:
        slow.send(request(path="/nowhere", headers=["Content-Length: 90000"]) + b" " * 70_000)
        assert slow.answer().status == 404
        slow.dribble(b" " * 5000, 0.05)
        assert slow.is_closed()


def test_E2_slow_reader(urls: tuple[str, str]) -> None:
    main, ops = urls
    with Connection(main, receive_buffer=4096) as reader:
        reader.send(request(body=body_of("huge", task="text")))
        wait_for(lambda: gauge(ops, "simpleseg_in_flight") == 0)
        time.sleep(4)  # more than it may take to read
        received = 0
        with suppress(ConnectionResetError):
            while came := reader.socket.recv(65536):
                received += len(came)
        assert 0 < received < 8_000_000


def test_E2_reader_that_takes_its_time_has_it_all(url: str) -> None:
    with Connection(url, receive_buffer=65536) as reader:
        reader.send(request(body=body_of("huge", task="text"), headers=["Connection: close"]))
        time.sleep(0.5)
        answer = reader.answer()
        assert answer.status == 200
        assert len(json.loads(answer.body)["results"][0]["text"]) == 8_000_000
        assert reader.is_closed()


@pytest.mark.parametrize("path", ["/segment", "/v1/chat/completions", "/nowhere"])
def test_E3_body_over_the_limit_by_its_length(url: str, path: str) -> None:
    with Connection(url) as connection:
        connection.send(request(path=path, headers=[f"Content-Length: {MAX_BODY + 1}"]))
        answer = connection.answer()  # before a byte of the body was sent
        assert (answer.status, answer.code) == (413, "payload_too_large")
        assert answer.headers["connection"] == "close"
        assert connection.is_closed()


def test_E3_body_over_the_limit_in_chunks(url: str) -> None:
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    with Connection(url) as connection:
        connection.send(request(headers=["Transfer-Encoding: chunked"]))
        for _ in range(6):
            connection.send(chunk)
        answer = connection.answer()
        assert (answer.status, answer.code) == (413, "payload_too_large")
        assert connection.is_closed()


def test_E4_expect_over_the_limit(url: str) -> None:
    headers = [f"Content-Length: {MAX_BODY + 1}", "Expect: 100-continue"]
    answer = ask(url, request(headers=headers))
    assert (answer.status, answer.interim) == (413, ())


def test_E4_expect(url: str) -> None:
    body = json.dumps(body_of()).encode()
    with Connection(url) as connection:
        connection.send(
            request(
                headers=[
                    f"Content-Length: {len(body)}",
                    "Expect: 100-continue",
                    "Content-Type: application/json",
                ]
            )
        )
        time.sleep(0.2)
        connection.send(body)
        answer = connection.answer()
    assert (answer.status, answer.interim) == (200, (100,))
    refused = ask(url, request(headers=["Content-Length: 5", "Expect: the-unexpected"]))
    assert (refused.status, refused.code) == (417, "expectation_unsupported")


BOUNDARY = "multipart/form-data; boundary=b"


def part(name: str, value: str = "x", filename: str | None = None) -> bytes:
    named = "" if filename is None else f'; filename="{filename}"'
    return (
        f'--b\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n{value}\r\n'.encode()
    )


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", part("prompt") + b"--b--\r\n"),
        (BOUNDARY, b"junk"),
        (BOUNDARY, part("prompt")[:-9]),
        (BOUNDARY, b"".join(part(f"f{n}") for n in range(1500)) + b"--b--\r\n"),
        (BOUNDARY, part("prompt", "x" * 150_000) + b"--b--\r\n"),
        (BOUNDARY, b"".join(part("image", "x", f"{n}.png") for n in range(10)) + b"--b--\r\n"),
        (BOUNDARY, b"--b\r\n" + b"A: b\r\n" * 10_000 + b"\r\nx\r\n--b--\r\n"),
        (BOUNDARY, b"x" * 150_000 + part("prompt") + b"--b--\r\n"),
        (BOUNDARY, part("image", "x", "../../../tmp/x") + b"--b--\r\n"),
    ],
    ids=["bare", "junk", "cut", "fields", "field", "files", "headers", "preamble", "name"],
)
def test_E5_multipart(url: str, content_type: str, body: bytes) -> None:
    answer = ask(url, request(body=body, headers=[f"Content-Type: {content_type}"]))
    assert 400 <= answer.status < 500
    assert answer.code


def test_E6_chunks_of_one_byte(url: str) -> None:
    body = json.dumps(body_of()).encode() + b" " * 20_000
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    for end in (b"0\r\n\r\n", b"0\r\nX-Trailer: y\r\n\r\n"):
        answer = ask(url, request(body=chunks + end, headers=["Transfer-Encoding: chunked"]))
        assert answer.status == 200


@pytest.mark.parametrize(
    "chunks", [b"x\r\n", b"-1\r\nx\r\n", b"1\r\nxyz\r\n0\r\n\r\n", b"f" * 20 + b"\r\n"]
)
def test_E6_chunks_of_no_size(url: str, chunks: bytes) -> None:
    with Connection(url) as connection:
        connection.send(request(body=chunks, headers=["Transfer-Encoding: chunked"]))
        answer = connection.answer()
        assert (answer.status, answer.code) == (400, "http_invalid")
        assert connection.is_closed()


SMUGGLED = request("GET", "/livez")


@pytest.mark.parametrize(
    "head",
    [
        "POST /segment HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked",
        "POST /segment HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4",
        "POST /segment HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5",
        "POST /segment HTTP/1.1\r\nHost: a\r\nContent-Length: -1",
        "POST /segment HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity",
        "GET /livez HTTP/1.1\r\nHost: a\r\nX-A: b\r\n folded",
        "GET /livez HTTP/1.1\r\nHost: a\nX-A: b",
        "GET /livez HTTP/1.1\r\nHost: a\r\nX-A: b\0c",
        "GET /livez HTTP/1.1\r\nHost: a\r\nX A: b",
        "GET /livez HTTP/1.1\r\nHost : a",
    ],
)
def test_E7_ambiguous(url: str, head: str) -> None:
    with Connection(url) as connection:
        connection.send(head.encode() + b"\r\n\r\n0\r\n\r\n" + SMUGGLED)
        answer = connection.answer()
        assert (answer.status, answer.code) == (400, "http_invalid")
        assert connection.is_closed()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request(headers=[f"X-{n}: y" for n in range(1000)]), 431),
        (request(headers=[f"X-Long: {'y' * 70_000}"]), 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 100_000, 431),
        (b"GET /" + b"x" * 100_000, 414),
        (request("GET", f"/{'x' * 9000}"), 414),
        (request("GET", "/livez", headers=[f"X-{n}: y" for n in range(63)]), 200),
        (request("GET", "/livez", headers=[f"X-Long: {'y' * 15_000}"]), 200),
    ],
)
def test_E8_large_heads(url: str, data: bytes, status: int) -> None:
    assert ask(url, data).status == status


@pytest.mark.parametrize("host", [None, "", "a/?x=", "a b", "a@b", "a,b", "a\r\nHost: b", "[::1"])
def test_E9_hosts(url: str, host: str | None) -> None:
    answer = ask(url, request("GET", "/livez", host=host))
    assert (answer.status, answer.code) == (400, "host_invalid")


@pytest.mark.parametrize("host", ["a", "a:80", "[::1]:80", "127.0.0.1:8000", "x_y.example"])
def test_E9_sound_hosts(url: str, host: str) -> None:
    assert ask(url, request("GET", "/livez", host=host)).status == 200


@pytest.mark.parametrize(
    ("data", "statuses"),
    [
        (request("TRACE", "/segment"), {405}),
        (request("DELETE", "/segment"), {405}),
        (request("CONNECT", "a:443"), {400, 404, 405}),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400}),
        (request("X" * 10_000, "/segment"), {400, 431}),
        (request("BREW", "/segment"), {400, 405}),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", {400}),
    ],
)
def test_E10_methods(url: str, data: bytes, statuses: set[int]) -> None:
    assert ask(url, data).status in statuses


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "x"])
def test_E11_compressed_body(url: str, encoding: str) -> None:
    body = gzip.compress(json.dumps(body_of()).encode())
    answer = ask(url, request(body=body, headers=[f"Content-Encoding: {encoding}"]))
    assert (answer.status, answer.code) == (415, "encoding_unsupported")


@pytest.mark.parametrize("content_type", ["text/plain", "image/png", "", "json"])
def test_E12_content_type(url: str, content_type: str) -> None:
    answer = ask(url, request(body=body_of(), headers=[f"Content-Type: {content_type}"]))
    assert answer.status == 415


def test_E13_disconnects_free_the_slot(urls: tuple[str, str]) -> None:
    main, ops = urls
    whole = request(body=body_of("endless"))
    stages = [
        request(headers=["Content-Length: 900"]),
        whole[:-40],
        request(headers=["Content-Length: 900", "Expect: 100-continue"]),
        request(headers=["Content-Length: 90000"]) + b" " * 70_000,
        whole,
        request(body=body_of("endless", stream=True)),
    ]
    before = gauge(ops, "simpleseg_client_disconnects_total")

    def has(name: str, value: float) -> bool:
        return gauge(ops, name) == value

    for number, data in enumerate(stages, 1):
        with Connection(main) as connection:
            connection.send(data)
            has_begun = number > 2  # not before a good part of the body is there
            wait_for(partial(has, "simpleseg_in_flight", has_begun))
        wait_for(partial(has, "simpleseg_in_flight", 0))
        wait_for(partial(has, "simpleseg_client_disconnects_total", before + number))
    assert ask(main, request(body=body_of())).status == 200


def test_E14_half_close(url: str) -> None:
    for prompt in ("x", "slow"):
        with Connection(url) as connection:
            connection.send(request(body=body_of(prompt)))
            connection.socket.shutdown(1)
            assert connection.answer().status == 200
            assert connection.is_closed()


def test_E14_half_close_within_a_body(urls: tuple[str, str]) -> None:
    main, ops = urls
    with Connection(main) as connection:
        connection.send(request(headers=["Content-Length: 900"]))
        connection.socket.shutdown(1)
        connection.read_to_end()
    wait_for(lambda: gauge(ops, "simpleseg_in_flight") == 0)


def test_E15_a_connection_is_recycled(url: str) -> None:
    with Connection(url) as connection:
        for count in range(1, 1001):
            connection.send(request("GET", "/livez"))
            answer = connection.answer()
            assert answer.status == 200
            assert ("connection" in answer.headers) == (count == 1000)
        assert connection.is_closed()


def test_E15_pipelined_requests_are_answered_in_order(url: str) -> None:
    with Connection(url) as connection:
        connection.send(
            request(body=body_of("slow"))
            + request("GET", "/livez")
            + request(path="/nowhere", body=body_of())
            + request("GET", "/livez")
        )
        assert [connection.answer().status for _ in range(4)] == [200, 200, 404, 200]


def test_E15_garbage_behind_a_request_does_not_spoil_its_answer(url: str) -> None:
    with Connection(url) as connection:
        connection.send(request(body=body_of("slow")) + b"\0garbage\r\n\r\n")
        answer = connection.answer()
        assert answer.status == 200
        assert json.loads(answer.body)["results"]
        assert connection.is_closed()


def test_E15_idle_connections_are_closed(url: str) -> None:
    idle = [Connection(url) for _ in range(20)]
    for connection in idle[:10]:
        connection.send(request("GET", "/livez"))
        assert connection.answer().status == 200
    assert status_of(f"{url}/livez") == 200
    for connection in idle:
        assert connection.is_closed()
        connection.socket.close()


def test_E16_connection_flood(urls: tuple[str, str]) -> None:
    main, ops = urls
    flood = [Connection(main) for _ in range(40)]
    more = [Connection(main) for _ in range(10)]
    for connection in more:
        answer = connection.answer()
        assert (answer.status, answer.code) == (503, "overloaded")
        assert "retry-after" in answer.headers
        assert status_of(f"{ops}/livez") == 200
    for connection in [*flood, *more]:
        connection.socket.close()
    wait_for(lambda: status_of(f"{main}/livez") == 200)


def test_E17_a_stream_that_fails_says_so(tmp_path: Path) -> None:
    """The status is sent with the first event; what fails later is told by an event."""
    body = body_of("endless", stream=True)
    settings = {"max_deadline_ms": "3000", "keep_alive_s": "0.5"}
    with (
        scripted_server(tmp_path / "log", **settings) as (_, (url,)),
        httpx2.stream("POST", f"{url}/segment", timeout=60, json=body) as answer,
    ):
        assert answer.status_code == 200
        text = answer.read().decode()
    assert "event: error\n" in text
    assert '"code":"queue_timeout"' in text
    assert text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("ranges", [1, 1000])
def test_E18_ranges(url: str, ranges: int) -> None:
    value = "bytes=" + ",".join(f"{n}-{n + 1}" for n in range(ranges))
    answer = ask(url, request("GET", "/", headers=[f"Range: {value}"]))
    assert answer.status in (200, 416)


@pytest.mark.parametrize(
    "path",
    [
        "/../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/app.js;x",
        "/%00",
        "/a%00.js",
        "/..%5c..%5cetc",
        "/./../server.py",
        "/%c0%ae%c0%ae/etc/passwd",
    ],
)
def test_E19_paths(url: str, path: str) -> None:
    answer = ask(url, request("GET", path))
    assert answer.status in (400, 404)
    assert b"root:" not in answer.body


def test_E20_foreign_origins(url: str) -> None:
    asked = {"Origin": "http://elsewhere.example", "Access-Control-Request-Method": "POST"}
    for answer in (
        httpx2.options(f"{url}/segment", headers=asked),
        httpx2.post(f"{url}/segment", headers=asked, json=body_of()),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_probes_answer_while_the_event_loop_is_stuck(urls: tuple[str, str]) -> None:
    """And say so: the server is not ready then. Rows I8 and R22 of the specification."""
    main, ops = urls
    seen: list[int | None] = []
    thread = threading.Thread(target=lambda: ask(main, request(body=body_of("stuck"))))
    thread.start()
    while thread.is_alive():
        assert status_of(f"{ops}/livez") == 200
        assert status_of(f"{ops}/metrics") == 200
        seen.append(status_of(f"{ops}/readyz"))
        time.sleep(0.02)
    assert 503 in seen
    wait_for(lambda: status_of(f"{ops}/readyz") == 200)


def test_E13_reset_while_the_answer_is_written(tmp_path: Path) -> None:
    """By clients that want the first bytes only: the connection may be gone before the last."""
    asked = request("GET", "/livez", headers=["Connection: close"])

    def read_a_byte(url: str) -> None:
        with Connection(url) as client:
            client.send(asked)
            client.socket.recv(1)
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with scripted_server(tmp_path / "log") as (_, (main, *_)):
        with ThreadPoolExecutor(8) as clients:
            list(clients.map(read_a_byte, [main] * 1000))
        assert ask(main, request(body=body_of())).status == 200
    assert '"bug"' not in (tmp_path / "log").read_text()
