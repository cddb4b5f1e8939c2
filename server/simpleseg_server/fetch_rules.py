"""Which URLs may be asked for an image, as far as the text tells. Where a host's addresses are is
judged when it is resolved, in ``fetch.py``."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address

import httpx2

from simpleseg_server.addresses import IPAddress

MAX_URL_CHARACTERS = 2048
WEB_PORTS = frozenset({80, 443})
_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_LISTED = re.compile(r"(?P<host>[^:\[\]]+|\[[^\]]+\])(:(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True)
class Target:
    """What one request asks for. ``host`` is a name in lower case and ASCII, or an address, without
    brackets or a final dot."""

    url: httpx2.URL
    host: str
    port: int

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: who gets what is meant for one server only."""
        return self.url.scheme, self.host, self.port

    def at(self, address: IPAddress) -> httpx2.URL:
        """The same at an address, so that nothing is left to resolve."""
        return self.url.copy_with(host=str(address))


def target_of(text: str) -> Target:
    """The one reading of a URL: host, port and request are all taken from it.

    Raises ValueError for what is no http(s) URL, or one with a user name, with a host that no name
    server knows, or with more than ``MAX_URL_CHARACTERS``.

    >>> target = target_of("https://EXAMPLE.org.:443/a b?c#d")
    >>> target.host, target.port, str(target.url)
    ('example.org', 443, 'https://example.org/a%20b?c')
    """
    if len(text) > MAX_URL_CHARACTERS:
        raise ValueError("too long")
    try:
        url = httpx2.URL(text)
        host = url.raw_host.decode("ascii").lower().removesuffix(".")
        if url.scheme not in _DEFAULT_PORTS or url.userinfo or not _is_host(host):
            raise ValueError("no URL of a public file")
        url = url.copy_with(host=host, fragment=None)
    except httpx2.InvalidURL:
        raise ValueError("no URL") from None
    port = _DEFAULT_PORTS[url.scheme] if url.port is None else url.port
    if not 1 <= port <= 65535:
        raise ValueError("no port")
    return Target(url, host, port)


def _is_host(host: str) -> bool:
    if _HOST_NAME.fullmatch(host):
        return True
    try:
        return IPv6Address(host).scope_id is None
    except ValueError:
        return False


def listed_host(text: str) -> tuple[str, int | None]:
    """An operator's ``host``, ``host:port`` or ``[address]:port``. Raises ValueError.

    >>> listed_host("Store.internal:9000"), listed_host("[fd00::1]"), listed_host("images")
    (('store.internal', 9000), ('fd00::1', None), ('images', None))
    """
    match = _LISTED.fullmatch(text.lower())
    host = "" if match is None else match["host"].strip("[]").removesuffix(".")
    if match is None or not _is_host(host):
        raise ValueError("no host")
    port = None if match["port"] is None else int(match["port"])
    if port is not None and not 1 <= port <= 65535:
        raise ValueError("no port")
    return host, port


class Rules:
    """Which hosts and ports may be asked: those that the operator lists, and, unless
    ``only_listed``, all others at ``ports``, whose addresses must be public then."""

    def __init__(self, listed: Iterable[str], ports: frozenset[int], *, only_listed: bool) -> None:
        self._ports = ports
        self._only_listed = only_listed
        self._listed = frozenset(
            (host, port)
            for host, given in map(listed_host, listed)
            for port in (ports if given is None else (given,))
        )

    def is_listed(self, target: Target) -> bool:
        return (target.host, target.port) in self._listed

    def allows(self, target: Target) -> bool:
        is_public_port = target.port in self._ports and not self._only_listed
        return is_public_port or self.is_listed(target)
