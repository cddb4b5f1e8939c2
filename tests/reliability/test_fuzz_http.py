"""Bytes that are almost HTTP: whatever comes, there is a sound answer or a closed connection, and
the next request is served. ``make fuzz-http`` sends 2,000; ``FUZZ_SEED`` repeats a run,
``FUZZ_TIMES`` makes it longer."""

import json
import os
import random
import re
import socket

import pytest

from ..times import TIMES
from .canary import IMAGE64, KEY, Canary, address_of

BODY = json.dumps({"image": IMAGE64, "prompt": "a dog"}).encode()
PIECES = (
    b"\r\n", b"\n", b"\r", b"\x00", b"\xff\xfe", b" ", b"\t", b":", b"%00", b"..", b"//",
    b"HTTP/1.1",
    b"HTTP/2.0", b"HTTP/9.9", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"Content-Length: 0\r\n",
    b"Content-Length: -1\r\n", b"Content-Length: 99999999999999999999\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n",
    b"Expect: 100-continue\r\n", b"Connection: upgrade\r\nUpgrade: h2c\r\n",
    b"Host: a\r\nHost: b\r\n",
    b"X: " + b"a" * 9000 + b"\r\n", b"X-A: b\r\n" * 150, b"ffffffff\r\n", b"0\r\n\r\n",
    b"Range: bytes=0-,0-,0-\r\n", b"Cookie: " + b"\x80" * 64 + b"\r\n", b"{", b"[" * 500,
    b'"\\ud800"',
)  # fmt: skip
PATHS = (b"/segment", b"/v1/chat/completions", b"/v1/images", b"/livez", b"/metrics", b"/", b"*")
METHODS = (b"POST", b"GET", b"PUT", b"OPTIONS", b"CONNECT", b"TRACE", b"HEAD", b"P\x00ST", b"")


def sound(draw: random.Random) -> bytes:
    """A request that is none of the faults yet."""
    head = b"%s %s HTTP/1.1\r\nHost: x\r\nX-API-Key: %s\r\nContent-Type: application/json\r\n" % (
        draw.choice(METHODS) if draw.random() < 0.3 else b"POST",
        draw.choice(PATHS),
        KEY.encode() if draw.random() < 0.8 else b"wrong",
    )
    if draw.random() < 0.3:
        size = draw.choice((1, 7, 1000))
        chunks = [BODY[i : i + size] for i in range(0, len(BODY), size)]
        framed = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


def mutated(draw: random.Random) -> bytes:
    """A request with one to four faults in it, most of them in its head."""
    data = bytearray(sound(draw))
    for _ in range(draw.randint(1, 4)):
        if not data:
            break
        place = draw.randrange(min(len(data), 200) if draw.random() < 0.7 else len(data))
        kind = draw.randrange(5)
        if kind == 0:
            data[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[place:place] = draw.choice(PIECES)
        elif kind == 2:
            del data[place : place + draw.randint(1, 40)]
        elif kind == 3:
            data[place:place] = data[place : place + draw.randint(1, 60)]
        else:
            del data[place + 1 :]
    return bytes(data) + (b"\r\n\r\n" if draw.random() < 0.5 else b"")


def answered(canary: Canary, data: bytes) -> bytes:
    """What comes back on a connection of its own, whose client waits no longer than a moment."""
    answer = b""
    with socket.create_connection(address_of(canary.url), 10) as connection:
        connection.settimeout(0.05)
        try:
            connection.sendall(data)
            while piece := connection.recv(65536):
                answer += piece
        except (TimeoutError, ConnectionError):
            pass
    canary.said.append(answer.decode("latin-1"))
    return answer


def fuzz(canary: Canary, count: int) -> None:
    seed = int(os.environ.get("FUZZ_SEED", "20261125"))
    print(f"FUZZ_SEED={seed}, {count} cases")
    draw = random.Random(seed)
    for case in range(count):
        data = mutated(draw)
        answer = answered(canary, data)
        statuses = [int(s) for s in re.findall(rb"^HTTP/1\.1 (\d{3}) ", answer, re.MULTILINE)]
        assert answer == b"" or answer.startswith(b"HTTP/1."), (seed, case, data[:300], answer[:99])
        assert not {500, 502, 504} & set(statuses), (seed, case, data[:300], answer[:300])
        if case % 100 == 99:
            assert canary.golden()
            canary.hang_up()


def test_http_fuzz(canary: Canary) -> None:
    fuzz(canary, 100)


@pytest.mark.slow
def test_http_fuzz_2000(canary: Canary) -> None:
    fuzz(canary, 2000 * TIMES)
