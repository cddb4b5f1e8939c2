"""Fetching an image from hosts of all kinds, on local sockets."""

import asyncio
import gzip
import math
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import closing
from typing import Any

import pytest
from PIL import Image

from simpleseg_server.config import Settings
from simpleseg_server.errors import ApiError
from simpleseg_server.fetch import Fetcher, Network
from simpleseg_server.fetch_rules import Rules, target_of
from simpleseg_server.resolver import ResolverBusyError, SystemResolver

from .conftest import encoded
from .image_hosts import (
    PRIVATE,
    PUBLIC,
    Answer,
    Host,
    Names,
    endless,
    redirecting,
    response,
    saying,
    serving,
    stalling,
    world,
)

PNG = encoded(Image.effect_noise((64, 64), 50))
SETTINGS = Settings(
    image_urls="public",
    image_url_timeout_s=60,
    image_url_connect_timeout_s=30,
    max_image_bytes=100_000,
)
HURRIED = SETTINGS.model_copy(update={"image_url_timeout_s": 0.5})


async def fetched(url: str, network: Network, settings: Settings = SETTINGS) -> Any:
    """The bytes, or status and code of the refusal; and the outcome that was counted."""
    outcomes: list[str] = []
    fetcher = Fetcher(settings, network, on_outcome=outcomes.append)
    try:
        async with asyncio.timeout(90):  # where a limit of the fetch itself does not hold
            result: Any = await fetcher.fetch(url, "image.url", math.inf)
    except ApiError as error:
        result = error.status, error.code
    (outcome,) = outcomes
    return result, outcome


def from_one(answer: Answer, settings: Settings = SETTINGS) -> tuple[Any, Host]:
    """What is fetched from a host that answers so, and the host."""

    async def run() -> tuple[Any, Host]:
        async with serving(answer) as host:
            return await fetched(host.url(), world(host), settings), host

    return asyncio.run(run())


@pytest.mark.catalogue("D14")
def test_an_image_comes_as_it_is_and_nothing_is_told_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)

    async def run() -> None:
        async with serving(saying(response(PNG, Content_Length=str(len(PNG))))) as host:
            url = host.url("/a b/é.png?q=1&r=%20#fragment")
            assert await fetched(url, world(host)) == (PNG, "ok")
        (head,) = host.heads
        first, *lines = head.strip().split("\r\n")
        assert first == "GET /a%20b/%C3%A9.png?q=1&r=%20 HTTP/1.1"
        assert dict(line.split(": ") for line in lines) == {
            "Host": f"host.test:{host.port}",
            "User-Agent": "simpleseg-server",
            "Accept": "image/jpeg, image/png, image/webp, image/gif, */*;q=0.1",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }

    asyncio.run(run())


@pytest.mark.parametrize(
    "data",
    [
        response(PNG),
        response(PNG, Content_Type="text/html"),
        response(PNG, Content_Encoding="identity"),
        response(PNG + b"more", Content_Length=str(len(PNG))),
        response(b"".join([f"{len(PNG):x}\r\n".encode(), PNG, b"\r\n0\r\n\r\n"]),
                 Transfer_Encoding="chunked"),
        b"HTTP/1.0 200 OK\r\n\r\n" + PNG,
        b"HTTP/1.1 100 Continue\r\n\r\n" + response(PNG),
    ],
)  # fmt: skip
def test_every_way_to_send_a_file(data: bytes) -> None:
    assert from_one(saying(data))[0] == (PNG, "ok")


@pytest.mark.parametrize(
    "data",
    [
        *(response(PNG, f"{status} x") for status in (201, 203, 206, 401, 404, 429, 500, 503, 999)),
        response(b"", "204 x"),
        response(b"", "304 x"),
        response(PNG, "300 Multiple Choices", Location="/x"),
        response(PNG, "302 Found"),
        response(b"<!doctype html><title>Log in</title>", Content_Type="image/png"),
        response(b""),
        response(PNG[:4]),
        response(PNG, Content_Length=str(len(PNG) + 1)),
        response(PNG, Content_Length="-1"),
        response(PNG, Content_Length="1, 2"),
        response(PNG, Transfer_Encoding="gzip"),
        response(b"zz\r\n", Transfer_Encoding="chunked"),
        response(b"5\r\n" + PNG[:5], Transfer_Encoding="chunked"),
        response(gzip.compress(PNG), Content_Encoding="gzip"),
        response(PNG, Content_Encoding="br"),
        response(gzip.compress(bytes(10**7))),
        response(PNG, X_Long="x" * 200_000),
        response(PNG, **{f"X_{n}": "x" * 100 for n in range(2000)}),
        b"HTTP/1.1 200 OK\r\n" * 10,
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"\n" * 300_000,
        b"",
    ],
    ids=lambda data: ascii(data[:60]),
)  # fmt: skip
@pytest.mark.catalogue("D12")
def test_what_is_no_image(data: bytes) -> None:
    assert from_one(saying(data))[0] == ((422, "image_fetch_failed"), "failed")


@pytest.mark.catalogue("D11")
def test_bytes_are_counted_before_and_while_they_come() -> None:
    refused = (413, "image_too_large"), "too_large"
    declared = response(PNG, Content_Length=str(10**10))
    assert from_one(stalling(declared))[0] == refused
    outcome, host = from_one(endless(response(PNG), bytes(10_000)))
    assert outcome == refused
    # What the sockets buffer comes on top.
    assert host.sent < 100 * SETTINGS.max_image_bytes


def test_an_endless_text_is_not_waited_for() -> None:
    outcome, host = from_one(endless(response(b""), b"<p>" * 10, pause_s=0.01))
    assert outcome == ((422, "image_fetch_failed"), "failed")
    assert host.sent < SETTINGS.max_image_bytes


@pytest.mark.parametrize(
    "answer",
    [
        stalling(),
        stalling(b"HTTP/1.1 200 OK\r\nX-"),
        stalling(response(PNG[:30])),
        endless(response(PNG), b"x", pause_s=0.01),
        endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", pause_s=0.01),
    ],
)
@pytest.mark.catalogue("D10")
def test_slow_hosts_are_left(answer: Answer) -> None:
    async def run() -> None:
        async with serving(answer) as host:
            found = await fetched(host.url(), world(host), HURRIED)
            assert found == ((422, "image_fetch_timeout"), "timeout")
            await until(lambda: host.open == 0)

    asyncio.run(run())


@pytest.mark.catalogue("D10")
def test_a_host_that_takes_no_connection() -> None:
    async def run() -> None:
        with closing(socket.socket()) as deaf, closing(socket.socket()) as only_one:
            deaf.bind((PUBLIC, 0))
            deaf.listen(0)
            only_one.connect(deaf.getsockname())  # fills the queue that nobody takes from
            host = Host(deaf.getsockname()[1])
            settings = SETTINGS.model_copy(update={"image_url_connect_timeout_s": 0.2})
            found = await fetched(host.url(), world(host), settings)
            assert found == ((422, "image_fetch_timeout"), "timeout")

    asyncio.run(run())


def test_the_deadline_of_the_request_holds() -> None:
    async def run() -> None:
        async with serving(stalling()) as host:
            fetcher = Fetcher(SETTINGS, world(host))
            soon = asyncio.get_running_loop().time() + 0.1
            async with asyncio.timeout(SETTINGS.image_url_timeout_s / 2):
                with pytest.raises(ApiError) as caught:
                    await fetcher.fetch(host.url(), "image", soon)
            assert caught.value.code == "image_fetch_timeout"

    asyncio.run(run())


def test_cancelling_closes_the_connection() -> None:
    async def run() -> None:
        outcomes: list[str] = []
        async with serving(stalling(response(PNG[:30]))) as host:
            fetcher = Fetcher(SETTINGS, world(host), outcomes.append)
            task = asyncio.create_task(fetcher.fetch(host.url(), "image", math.inf))
            await until(lambda: host.sent > 0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.wait_for(host.ended.wait(), 10)
        assert outcomes == ["cancelled"]

    asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


# How many at once.


def crowd(
    settings: Settings, expected: int, urls: Callable[[Host], list[str]]
) -> Coroutine[Any, Any, tuple[int, list[str]]]:
    """How many connections a host got that never answers, a while after the expected ones, and the
    refusals' codes."""

    async def run() -> tuple[int, list[str]]:
        async with serving(stalling()) as host:
            fetcher, refused = Fetcher(settings, world(host)), []

            async def one(url: str) -> None:
                try:
                    await fetcher.fetch(url, "image", math.inf)
                except ApiError as error:
                    refused.append(f"{error.status} {error.code} {error.retry_after_s}")

            tasks = [asyncio.create_task(one(url)) for url in urls(host)]
            await until(lambda: len(host.heads) >= expected)
            await asyncio.sleep(0.2)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return len(host.heads), refused

    return run()


@pytest.mark.catalogue("D15")
def test_one_host_gets_few_connections_and_as_many_wait() -> None:
    settings = SETTINGS.model_copy(update={"max_fetches_per_host": 3})
    connections, refused = asyncio.run(crowd(settings, 3, lambda host: [host.url()] * 50))
    assert connections == 3
    assert refused == ["503 overloaded 1.0"] * (50 - 6)


@pytest.mark.catalogue("D15")
def test_all_hosts_together_get_a_bounded_number() -> None:
    settings = SETTINGS.model_copy(update={"max_fetches": 5, "max_fetches_per_host": 3})
    found = crowd(settings, 5, lambda host: [host.url(host=f"{n}.test") for n in range(30)])
    connections, refused = asyncio.run(found)
    assert connections == 5
    assert refused == ["503 overloaded 1.0"] * 25


@pytest.mark.catalogue("D10")
def test_places_are_given_back() -> None:
    async def run() -> None:
        settings = HURRIED.model_copy(update={"max_fetches": 1, "max_fetches_per_host": 1})
        async with serving(stalling()) as slow, serving(saying(response(PNG))) as host:
            fetcher = Fetcher(settings, world(slow, host))
            for _ in range(3):
                with pytest.raises(ApiError):
                    await fetcher.fetch(slow.url(), "image", math.inf)
            assert await fetcher.fetch(host.url(), "image", math.inf) == PNG

    asyncio.run(run())


# The system's resolver.


def test_a_slow_name_server_holds_up_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(host: str, *_: Any, **__: Any) -> Any:
        time.sleep(1.0 if host == "slow.test" else 0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", slow)

    async def run() -> None:
        resolver = SystemResolver(2)
        waiting = [asyncio.create_task(resolver("slow.test")) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(ResolverBusyError):
            await resolver("quick.test")
        assert not any(task.done() for task in waiting)  # the loop went on meanwhile
        waiting[0].cancel()
        assert list(map(str, await waiting[1])) == ["127.0.0.1"]
        assert list(map(str, await resolver("quick.test"))) == ["127.0.0.1"]

    asyncio.run(run())


@pytest.mark.parametrize("host", ["", "a" * 64, "no-such-name.invalid", "x\x00y"])
def test_names_that_have_no_address(host: str) -> None:
    async def run() -> None:
        with pytest.raises(OSError):  # noqa: PT011
            await SystemResolver(1)(host)

    asyncio.run(run())


def test_a_busy_resolver_is_the_servers_own_state() -> None:
    async def busy(_: str) -> Any:
        raise ResolverBusyError

    found = asyncio.run(fetched("http://host.test/", Network(resolve=busy)))
    assert found == ((503, "overloaded"), "busy")


# Hosts that the operator lists.


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://store.internal:9000/x", True),
        ("http://STORE.internal.:9000/x", True),
        ("http://store.internal/x", False),
        ("http://plain.internal/x", True),
        ("https://plain.internal/x", True),
        ("http://plain.internal:8080/x", False),
        ("http://sub.plain.internal/x", False),
        ("http://[fd00::1]:9000/x", True),
        ("http://10.0.0.5/x", True),
    ],
)
def test_listed_hosts_and_their_ports(url: str, allowed: bool) -> None:
    listed = ["store.internal:9000", "plain.internal", "[fd00::1]:9000", "10.0.0.5"]
    rules = Rules(listed, frozenset({80, 443}), only_listed=True)
    assert rules.allows(target_of(url)) is rules.is_listed(target_of(url)) is allowed


def test_a_listed_host_may_be_anywhere_and_no_other() -> None:
    async def run() -> None:
        names = Names({"store.test": [(PRIVATE,)], "other.test": [(PRIVATE,)], "gone.test": [()]})
        async with serving(saying(response(PNG)), PRIVATE) as store:
            hosts = tuple(f"{name}.test:{store.port}" for name in ("store", "gone"))
            listed = SETTINGS.model_copy(update={"image_urls": "listed", "image_url_hosts": hosts})
            public = listed.model_copy(update={"image_urls": "public"})

            async def asked(name: str, settings: Settings) -> Any:
                network = world(store, names=names)
                return (await fetched(store.url(host=f"{name}.test"), network, settings))[0]

            for settings in (listed, public):
                assert await asked("store", settings) == PNG
                assert await asked("gone", settings) == (422, "image_fetch_failed")
                assert await asked("other", settings) == (422, "image_url_blocked")
            assert "host.test" not in names.asked
            assert await asked("host", listed) == (422, "image_url_blocked")
            assert "host.test" not in names.asked

    asyncio.run(run())


def test_a_listed_host_redirects_to_no_unlisted_one() -> None:
    async def run() -> None:
        names = Names({"private.test": [(PRIVATE,)]})
        async with serving(redirecting("http://private.test:PORT/")) as store:
            update = {"image_url_hosts": (f"store.test:{store.port}",)}
            settings = SETTINGS.model_copy(update=update)
            found = await fetched(store.url(host="store.test"), world(store, names=names), settings)
            assert found == ((422, "image_url_blocked"), "blocked")

    asyncio.run(run())
