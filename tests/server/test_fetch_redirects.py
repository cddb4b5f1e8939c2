"""Redirects, and names that change what they stand for: each address is judged when it is asked."""

import asyncio

import pytest

from simpleseg_server.fetch import Network

from .image_hosts import PRIVATE, PUBLIC, Names, redirecting, response, saying, serving, world
from .test_fetch import PNG, SETTINGS, fetched, from_one


@pytest.mark.parametrize("status", ["301 a", "302 b", "303 c", "307 d", "308 e"])
def test_redirects_are_followed(status: str) -> None:
    async def run() -> None:
        async with serving(saying(response(PNG))) as store:
            target = f"http://store.test:{store.port}/y.png#z"
            async with serving(
                redirecting("y", "//host.test:PORT/z", target, status=status)
            ) as host:
                network = world(host, store)
                assert await fetched(host.url("/a/x"), network) == (PNG, "ok")
        assert [head.split()[1] for head in host.heads] == ["/a/x", "/a/y", "/z"]
        assert [head.split("\r\n")[1] for head in store.heads] == [f"Host: store.test:{store.port}"]

    asyncio.run(run())


@pytest.mark.catalogue("D7")
def test_redirects_end() -> None:
    outcome, host = from_one(redirecting("/x.png"))
    assert outcome == ((422, "too_many_redirects"), "redirects")
    assert len(host.heads) == 1 + SETTINGS.max_image_url_redirects
    none = SETTINGS.model_copy(update={"max_image_url_redirects": 0})
    assert len(from_one(redirecting("/x.png"), none)[1].heads) == 1


@pytest.mark.parametrize(
    "target",
    [
        "http://private.test:PORT/",
        f"http://{PRIVATE}:PORT/",
        "//private.test:PORT/",
        "http://private.test:PORT/#@host.test",
        "http://host.test@private.test:PORT/",
        "http://user:password@host.test:PORT/",
        "http://host.test:1/",
        "http://host.test/",
        "https://host.test/",
        "file:///etc/passwd",
        "ftp://host.test:PORT/",
        "gopher://private.test:PORT/_x",
        "data:image/png;base64,aGk=",
        "http://[/",
        "http://" + "x" * 3000,
    ],
)
@pytest.mark.catalogue("D7")
def test_redirects_are_judged_like_the_first_url(target: str) -> None:
    async def run() -> None:
        names = Names({"private.test": [(PRIVATE,)], PRIVATE: [(PRIVATE,)]})
        async with (
            serving(redirecting(target)) as host,
            serving(saying(response(PNG)), PRIVATE, host.port) as inside,
        ):
            found = await fetched(host.url(), world(host, names=names))
            assert found == ((422, "image_url_blocked"), "blocked")
            assert (len(host.heads), inside.heads) == (1, [])

    asyncio.run(run())


@pytest.mark.catalogue("D6")
def test_a_name_is_resolved_once_and_its_address_kept() -> None:
    async def run() -> None:
        names = Names({"host.test": [(PUBLIC,), (PRIVATE,)]})
        async with (
            serving(saying(response(PNG))) as host,
            serving(saying(response(PNG)), PRIVATE, host.port) as inside,
        ):
            network = world(host, names=names)
            assert await fetched(host.url(), network) == (PNG, "ok")
            assert names.asked == ["host.test"]
            assert (len(host.heads), inside.heads) == (1, [])
            again = await fetched(host.url(), network)
            assert again == ((422, "image_url_blocked"), "blocked")
            assert inside.heads == []

    asyncio.run(run())


@pytest.mark.catalogue("D6")
def test_a_name_is_judged_again_at_each_redirect() -> None:
    async def run() -> None:
        names = Names({"host.test": [(PUBLIC,), (PRIVATE,)]})
        async with (
            serving(redirecting("/again")) as host,
            serving(saying(response(PNG)), PRIVATE, host.port) as inside,
        ):
            found = await fetched(host.url(), world(host, names=names))
            assert found == ((422, "image_url_blocked"), "blocked")
            assert names.asked == ["host.test"] * 2
            assert (len(host.heads), inside.heads) == (1, [])

    asyncio.run(run())


@pytest.mark.parametrize("answer", [(PUBLIC, PRIVATE), (PRIVATE, PUBLIC), ()])
@pytest.mark.catalogue("D6")
def test_one_bad_address_closes_all(answer: tuple[str, ...]) -> None:
    async def run() -> None:
        async with serving(saying(response(PNG))) as host:
            names = Names({"host.test": [answer]})
            found = await fetched(host.url(), world(host, names=names))
            assert found == ((422, "image_url_blocked"), "blocked")
            assert host.heads == []

    asyncio.run(run())


def test_the_next_address_is_tried_where_nobody_listens() -> None:
    async def run() -> None:
        async with serving(saying(response(PNG))) as host:
            network = Network(
                resolve=Names({"host.test": [("127.0.0.3", "127.0.0.4", PUBLIC)]}),
                is_open=lambda _: True,
                ports=frozenset({host.port}),
            )
            assert await fetched(host.url(), network) == (PNG, "ok")
            many = tuple(f"127.0.0.{n}" for n in range(2, 9))
            network = Network(
                resolve=Names({"host.test": [(*many, PUBLIC)]}),
                is_open=lambda _: True,
                ports=frozenset({host.port}),
            )
            assert await fetched(host.url(), network) == ((422, "image_fetch_failed"), "failed")

    asyncio.run(run())
