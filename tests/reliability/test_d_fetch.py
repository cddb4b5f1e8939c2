"""Section D: images by URL, as far as it needs a server of its own; the addresses are in
``tests/server/test_fetch*.py``."""

import asyncio
from typing import Any

from simpleseg_server.config import Settings
from simpleseg_server.fetch import Network

from ..server.image_hosts import endless, response, serving, stalling, world
from ..server.test_fetch import HURRIED, PNG, fetched
from .conftest import MakeCanary


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
