"""Addresses that no client may reach: judged one by one, and through the whole server without a
connection being tried."""

import asyncio
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from simpleseg_server.addresses import IPAddress, is_own, is_public
from simpleseg_server.app import create_app
from simpleseg_server.config import Settings
from simpleseg_server.fetch import Network
from simpleseg_server.fetch_rules import target_of

from .conftest import PhraseEngine
from .ssrf import (
    FORBIDDEN_V4,
    FORBIDDEN_V6,
    PUBLIC,
    SPELLINGS,
    TableResolver,
    Vector,
    outcomes,
    vectors,
)

VECTORS = vectors()
# Patient, since other processes may keep this one waiting.
SETTINGS = Settings(image_urls="public", image_url_timeout_s=60)
NAT64 = IPv6Network("64:ff9b::/96")

_watchers: list[list[Any]] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    # A datagram socket is told of an address to find its own: that sends nothing.
    if event == "socket.connect" and arguments[0].type == socket.SOCK_STREAM:
        for seen in _watchers:
            seen.append(arguments[1][:2])


sys.addaudithook(_note)


@contextmanager
def connections() -> Iterator[list[Any]]:
    """Host and port of whatever stream sockets of this process are told to connect to."""
    seen: list[Any] = []
    _watchers.append(seen)
    try:
        yield seen
    finally:
        _watchers.remove(seen)


def test_there_are_enough_vectors() -> None:
    assert len(VECTORS) == len(set(VECTORS)) >= 1000
    assert len({vector.url for vector in VECTORS if vector.answers is None}) >= 700


@pytest.mark.parametrize("text", [*FORBIDDEN_V4, *FORBIDDEN_V6])
def test_addresses_that_are_not_public(text: str) -> None:
    assert not is_public(ip_address(text))


@pytest.mark.parametrize("text", PUBLIC)
def test_addresses_that_are(text: str) -> None:
    assert is_public(ip_address(text))


@given(st.ip_addresses(v=4))
@example(IPv4Address("10.0.0.1"))
@example(IPv4Address("127.0.0.1"))
@pytest.mark.catalogue("D5")
def test_an_embedded_address_is_no_better_than_itself(address: IPv4Address) -> None:
    texts = [spell(address) for spell in SPELLINGS.values()]
    embedded = [IPv6Address(text.strip("[]")) for text in texts if text.startswith("[")]
    assert len(embedded) >= 10
    assert is_public(address) or not any(map(is_public, embedded))


@given(st.ip_addresses())
def test_what_the_standard_library_takes_for_private_is_not_public(address: IPAddress) -> None:
    is_translated = isinstance(address, IPv6Address) and address in NAT64
    assert address.is_global or is_translated or not is_public(address)


def test_an_address_with_a_zone_is_not_public() -> None:
    assert is_public(IPv6Address("2a00:1450::1"))
    assert not is_public(IPv6Address("2a00:1450::1%eth0"))


@pytest.mark.parametrize(("text", "expected"), [("127.0.0.1", True), ("192.0.2.1", False)])
def test_this_machine_knows_its_own_addresses(text: str, expected: bool) -> None:
    assert is_own(IPv4Address(text)) is expected
    assert is_own(IPv6Address(f"::ffff:{text}")) is expected


def test_a_public_address_of_this_machine_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simpleseg_server.fetch.is_public", lambda _: True)
    assert not Network().is_open(IPv4Address("127.0.0.1"))
    assert Network().is_open(IPv4Address("192.0.2.1"))


@pytest.mark.parametrize(
    "url",
    [
        "http://user@example.org/",
        "http://user:password@example.org/",
        "http://:password@example.org/",
        "http://[2a00:1450::1%25eth0]/",
        "http://[2a00:1450::1%eth0]/",
        "http://example.org%2f/",
        "http://example.org\\@example.com/",
        "http://example..org/",
        "http://example.org:0/",
        "http://example.org:65536/",
        "http://" + "a" * 64 + ".org/",
        "http://" + "a." * 127 + "org/",
        "http://example.org/" + "x" * 2048,
        "ftp://example.org/",
        "//example.org/",
        "example.org",
        "",
    ],
)
def test_urls_that_are_none_of_a_public_file(url: str) -> None:
    with pytest.raises(ValueError, match=r"^(no|too) "):
        target_of(url)


@pytest.mark.catalogue("D1", "D2", "D3", "D4", "D5", "D6", "D8", "D9")
def test_forbidden_urls_are_refused_before_any_connection() -> None:
    with connections() as seen:
        refused = asyncio.run(outcomes(SETTINGS, Network(), VECTORS))
    assert {code for _, code in refused} == {"image_url_blocked", "image_url_invalid"}
    assert seen == []


def test_without_the_judge_connections_are_seen() -> None:
    """The instrument works: forbidden addresses would show."""
    with connections() as seen:
        asyncio.run(outcomes(SETTINGS, Network(is_open=lambda _: True), [Vector("http://0x7f.1/")]))
    assert seen == [("127.0.0.1", 80)]


Asks = Callable[[TestClient, str], Any]


def _segment(client: TestClient, url: str) -> Any:
    return client.post("/segment", json={"image": {"url": url}, "prompt": "x"})


def _chat(client: TestClient, url: str) -> Any:
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "x"}]
    return client.post(
        "/v1/chat/completions", json={"messages": [{"role": "user", "content": parts}]}
    )


def _upload(client: TestClient, url: str) -> Any:
    return client.post("/v1/images", json={"image": {"url": url}})


@pytest.mark.parametrize(("ask", "every"), [(_segment, 3), (_chat, 10), (_upload, 10)])
@pytest.mark.catalogue("D1", "D2", "D3", "D4", "D5", "D6", "D8", "D9")
def test_the_server_refuses_them_in_one_voice(engine: PhraseEngine, ask: Asks, every: int) -> None:
    resolver, answers = TableResolver(), []
    with (
        TestClient(create_app(SETTINGS, engine, network=Network(resolve=resolver))) as client,
        connections() as seen,
    ):
        for vector in VECTORS[::every]:
            resolver.answers = vector.answers
            answers.append(ask(client, vector.url))
    assert {answer.status_code for answer in answers} == {422}
    errors = [answer.json()["error"] for answer in answers]
    assert {error["code"] for error in errors} == {"image_url_blocked", "image_url_invalid"}
    assert len({(error["code"], error["message"]) for error in errors}) == 2
    assert seen == []


@pytest.mark.catalogue("D8")
def test_nothing_of_a_url_is_logged(engine: PhraseEngine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    resolver = TableResolver()
    resolver.answers = ("10.0.0.1",)
    with TestClient(create_app(SETTINGS, engine, network=Network(resolve=resolver))) as client:
        answer = _segment(client, "http://canary-host.test/canary-path?canary-query=1")
    assert answer.status_code == 422
    told = caplog.text + answer.text + str(answer.headers) + client.get("/metrics").text
    assert "canary" not in told
