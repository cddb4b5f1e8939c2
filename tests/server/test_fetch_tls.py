"""Images over TLS: the certificate must be for the host's name, although an address is asked."""

import asyncio
import math
import ssl
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trustme

from simpleseg_server.config import Settings
from simpleseg_server.errors import ApiError
from simpleseg_server.fetch import Fetcher

from .image_hosts import Answer, redirecting, response, saying, serving, world

GIF = b"GIF89a and whatever follows"
FAILED = "image_fetch_failed", 0
SETTINGS = Settings(image_urls="public", image_url_timeout_s=60, image_url_connect_timeout_s=30)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def presenting(certificate: trustme.LeafCert) -> ssl.SSLContext:
    """A server's side with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def asked(
    server: ssl.SSLContext,
    authority: trustme.CA,
    host: str = "host.test",
    answer: Answer = saying(response(GIF)),  # noqa: B008
) -> tuple[Any, int]:
    """What is fetched from a server with this context, or the code of the refusal; and how many
    requests the server read."""

    async def run() -> tuple[Any, int]:
        async with serving(answer, tls=server) as store:
            network = world(store, tls=lambda: trusting(authority))
            url = store.url(host=host, scheme="https")
            try:
                found: Any = await Fetcher(SETTINGS, network).fetch(url, "image", math.inf)
            except ApiError as error:
                found = error.code
            return found, len(store.heads)

    return asyncio.run(run())


@pytest.mark.parametrize("host", ["host.test", "HOST.test.", "xn--4ca.test", "127.0.0.1"])
def test_the_certificate_is_checked_by_name(authority: trustme.CA, host: str) -> None:
    names = "host.test", "xn--4ca.test", "127.0.0.1"
    assert asked(presenting(authority.issue_cert(*names)), authority, host) == (GIF, 1)


@pytest.mark.catalogue("D6")
def test_the_server_hears_the_name(authority: trustme.CA) -> None:
    heard: list[str | None] = []
    server = presenting(authority.issue_cert("host.test"))
    server.sni_callback = lambda _, name, __: heard.append(name)
    assert asked(server, authority, "host.test.") == (GIF, 1)
    assert heard == ["host.test"]


@pytest.mark.catalogue("D13")
def test_bad_certificates(authority: trustme.CA) -> None:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    expired = authority.issue_cert("host.test", not_after=yesterday)
    for certificate in (
        authority.issue_cert("other.test"),
        authority.issue_cert("127.0.0.1"),  # the address that is asked, but not the name
        authority.issue_cert("*.host.test"),
        expired,
        trustme.CA().issue_cert("host.test"),
    ):
        assert asked(presenting(certificate), authority) == FAILED


@pytest.mark.catalogue("D13")
def test_old_versions_of_tls(authority: trustme.CA) -> None:
    server = presenting(authority.issue_cert("host.test"))
    server.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLS"):
        server.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLS"):
        server.maximum_version = ssl.TLSVersion.TLSv1_1
    assert asked(server, authority) == FAILED


def test_hosts_at_one_address_share_no_connection(authority: trustme.CA) -> None:
    """A certificate that was good for one name is not taken for another."""
    server = presenting(authority.issue_cert("host.test"))
    elsewhere = redirecting("https://other.test:PORT/")
    assert asked(server, authority, answer=elsewhere) == ("image_fetch_failed", 1)
