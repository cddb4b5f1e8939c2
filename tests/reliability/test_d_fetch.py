"""Section D: images by URL, as far as it needs a server of its own; the addresses are in
``tests/server/test_fetch*.py``."""

import asyncio
import socket
import statistics
import time
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from simpleseg_server.config import Settings
from simpleseg_server.fetch import Network

from ..server.image_hosts import endless, response, serving, stalling, world
from ..server.test_fetch import HURRIED, PNG, fetched, until
from .canary import IMAGE64, KEY
from .conftest import MakeCanary
from .test_f_load import load


def test_D10_one_try_of_a_slow_name_or_host() -> None:
    async def never(_: str) -> Any:
        await asyncio.sleep(3600)

    async def run() -> None:
        refused = (422, "image_fetch_timeout"), "timeout"
        assert await fetched("http://slow.test/", Network(resolve=never), HURRIED) == refused
        async with serving(stalling()) as host:
            assert await fetched(host.url(), world(host), HURRIED) == refused
            assert len(host.heads) == 1

    asyncio.run(run())
    assert Settings().image_url_timeout_s == 5


def test_D11_endless_chunks() -> None:
    async def run() -> None:
        chunk = b"2710\r\n" + bytes(10_000) + b"\r\n"
        begun = response(f"{len(PNG):x}\r\n".encode() + PNG + b"\r\n", Transfer_Encoding="chunked")
        async with serving(endless(begun, chunk)) as host:
            found = await fetched(host.url(), world(host), HURRIED)
            assert found == ((413, "image_too_large"), "too_large")

    asyncio.run(run())


def test_D15_a_thousand_requests_that_name_one_slow_host(make_canary: MakeCanary) -> None:
    """As many as there are places wait, the others are refused, and uploads go on as before."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        settings = {"image_urls": "listed", "image_url_hosts": host, "image_url_timeout_s": "300"}
        with make_canary(**settings) as canary:
            port = urlsplit(canary.url).port
            naming = load.Question.of({"image": {"url": f"http://{host}/"}, "prompt": "x"}, KEY)
            upload = load.Question.of({"image": IMAGE64, "prompt": "x"}, KEY)

            async def uploads() -> float:
                shots = [await load.shoot(port, upload, time.perf_counter()) for _ in range(20)]
                assert all(shot.is_good for shot in shots)
                return statistics.median([float(shot.seconds) for shot in shots])

            async def run() -> None:
                alone, named = await uploads(), set[asyncio.Task[Any]]()
                for number in range(1000):
                    shot = load.shoot(port, naming, time.perf_counter())
                    named.add(asyncio.create_task(shot))
                    while sum(not one.done() for one in named) > 30:
                        await asyncio.sleep(0.001)
                    if number % 100 == 0:
                        await uploads()
                await until(lambda: sum(not one.done() for one in named) <= 16)
                assert await uploads() < 3 * alone
                refused = [one.result() for one in named if one.done()]
                assert len(refused) == 1000 - 16
                assert {(shot.status, shot.code) for shot in refused} == {(503, "overloaded")}
                assert len(accepted(silent)) == 8
                for one in named:
                    one.cancel()
                await asyncio.gather(*named, return_exceptions=True)

            asyncio.run(run())


def accepted(listener: socket.socket) -> list[Any]:
    """The addresses of those who have connected and were not accepted yet."""
    listener.setblocking(False)
    found = []
    with suppress(BlockingIOError):
        while True:
            connection, address = listener.accept()
            connection.close()
            found.append(address)
    return found


def test_D16_the_server_s_own_url(make_canary: MakeCanary) -> None:
    with make_canary(image_urls="public") as canary:
        port, ops_port = (url.rpartition(":")[2] for url in (canary.url, canary.ops_url))
        before = canary.counted()
        names = ("127.0.0.1", "localhost", "0.0.0.0", "[::ffff:127.0.0.1]", "2130706433")
        for host in names:
            for own in (port, ops_port):
                url = f"http://{host}:{own}/v1/models"
                answer = canary.segment(image={"url": url})
                assert answer.json()["error"]["code"] == "image_url_blocked"
        asked = 2 * len(names) + 1  # and the first scrape
        assert canary.counted() == before + asked
