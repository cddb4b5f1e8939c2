"""URLs that must reach nothing: a table of addresses times their spellings, and a file of others.

Each comes with what its host resolves to, where that is a name.
"""

import math
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from simpleseg_server.addresses import IPAddress
from simpleseg_server.config import Settings
from simpleseg_server.errors import ApiError
from simpleseg_server.fetch import Fetcher, Network
from simpleseg_server.resolver import SystemResolver

URLS_FILE = Path(__file__).parents[1] / "golden/fetch/urls.txt"

FORBIDDEN_V4 = (
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.8.8.8",
    "168.63.129.16",
    "169.254.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.254",
    "192.0.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.31.196.1",
    "192.52.193.1",
    "192.88.99.1",
    "192.168.0.1",
    "192.168.255.255",
    "192.175.48.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
)
FORBIDDEN_V6 = (
    "::",
    "::1",
    "64:ff9b:1::1",
    "100::1",
    "100:0:0:1::1",
    "2001::1",
    "2001:1::1",
    "2001:2::1",
    "2001:3::1",
    "2001:4:112::1",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:808:808::1",
    "2620:4f:8000::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fdff:ffff::1",
    "fe80::1",
    "febf::1",
    "fec0::1",
    "ff01::1",
    "ff02::1",
    "ff05::2",
    "ff0e::1",
)
PUBLIC = (
    "1.1.1.1",
    "8.8.8.8",
    "9.9.9.9",
    "100.63.255.255",
    "100.128.0.1",
    "126.255.255.255",
    "128.0.0.1",
    "169.253.255.255",
    "169.255.0.1",
    "172.15.255.255",
    "172.32.0.1",
    "192.0.1.1",
    "192.167.255.255",
    "192.169.0.1",
    "198.17.255.255",
    "198.20.0.1",
    "223.255.255.254",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "2001:4860:4860::8888",
    "2606:4700:4700::1111",
    "2620:fe::fe",
    "2a00:1450::5efe:8.8.8.8",
)

SPELLINGS: dict[str, Callable[[IPv4Address], str]] = {
    "decimal": str,
    "dword": lambda a: str(int(a)),
    "hex dword": lambda a: hex(int(a)),
    "octal dword": lambda a: f"0{int(a):o}",
    "hex": lambda a: ".".join(map(hex, a.packed)),
    "octal": lambda a: ".".join(f"0{part:o}" for part in a.packed),
    "two parts": lambda a: f"{a.packed[0]}.{int.from_bytes(a.packed[1:])}",
    "three parts": lambda a: f"{a.packed[0]}.{a.packed[1]}.{int.from_bytes(a.packed[2:])}",
    "final dot": lambda a: f"{a}.",
    "full stops of CJK": lambda a: str(a).replace(".", "。"),
    "mapped": lambda a: f"[::ffff:{a}]",
    "mapped in hex": lambda a: f"[::ffff:{_hex(a)}]",
    "compatible": lambda a: f"[::{a}]",
    "translated": lambda a: f"[::ffff:0:{a}]",
    "NAT64": lambda a: f"[64:ff9b::{a}]",
    "local NAT64": lambda a: f"[64:ff9b:1::{a}]",
    "6to4": lambda a: f"[2002:{_hex(a)}::1]",
    "Teredo server": lambda a: f"[2001:0:{_hex(a)}:0:ffff:f6f6:f6f6]",
    "Teredo client": lambda a: f"[2001:0:909:909:0:ffff:{_hex(_inverted(a))}]",
    "ISATAP": lambda a: f"[2a00:1450::5efe:{a}]",
    "ISATAP, global": lambda a: f"[2a00:1450::200:5efe:{a}]",
}


def _hex(address: IPv4Address) -> str:
    return f"{int(address) >> 16:x}:{int(address) & 0xFFFF:x}"


def _inverted(address: IPv4Address) -> IPv4Address:
    return IPv4Address(int(address) ^ 0xFFFFFFFF)


@dataclass(frozen=True)
class Vector:
    """A URL, and the addresses of its host; None where it is for the system's resolver to say."""

    url: str
    answers: tuple[str, ...] | None = None


def vectors() -> list[Vector]:
    """All of them, each once."""
    return list(dict.fromkeys([*_spelled(), *_named(), *_written()]))


def _spelled() -> Iterator[Vector]:
    for text in FORBIDDEN_V4:
        for spell in SPELLINGS.values():
            yield Vector(f"http://{spell(IPv4Address(text))}/x.png")
    for text in FORBIDDEN_V6:
        yield Vector(f"http://[{text}]/x.png")
        yield Vector(f"https://[{IPv6Address(text).exploded.upper()}]:443/x.png")


def _named() -> Iterator[Vector]:
    for number, text in enumerate((*FORBIDDEN_V4, *FORBIDDEN_V6)):
        yield Vector(f"https://name-{number}.test/x.png", (text,))
        yield Vector(f"http://mixed-{number}.test/x.png", ("9.9.9.9", text))


def _written() -> Iterator[Vector]:
    for line in URLS_FILE.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        found = re.fullmatch(r"(?P<url>.*?)(?P<answers>( ([0-9a-f.:]*[.:][0-9a-f.:]*|-))*)", line)
        assert found is not None
        answers = found["answers"].split()
        known = tuple(answer for answer in answers if answer != "-") if answers else None
        yield Vector(_unescaped(found["url"]), known)


def _unescaped(text: str) -> str:
    r"""
    >>> _unescaped(r"a\x00\\b")
    'a\x00\\b'
    """
    escape = r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|(\\))"
    return re.sub(escape, lambda m: m[3] or chr(int(m[1] or m[2], 16)), text)


class TableResolver:
    """Answers for the host of the vector that was put in, and leaves other spellings of addresses
    to the system; never asks a name server."""

    def __init__(self) -> None:
        self.answers: tuple[str, ...] | None = None
        self._system: Callable[[str], Awaitable[tuple[IPAddress, ...]]] = SystemResolver(8)

    async def __call__(self, host: str) -> tuple[IPAddress, ...]:
        if self.answers is not None:
            return tuple(map(ip_address, self.answers))
        if host != "localhost" and not re.fullmatch(r"[0-9a-fx.]+|.*:.*", host):
            raise OSError("no such name")
        return await self._system(host)


async def outcomes(
    settings: Settings, network: Network, asked: Iterable[Vector]
) -> list[tuple[str, str]]:
    """Each URL, and the code that it is refused with, "" where an image came. The vectors say how
    names resolve."""
    resolver, found = TableResolver(), []
    fetcher = Fetcher(settings, replace(network, resolve=resolver))
    for vector in asked:
        resolver.answers = vector.answers
        try:
            await fetcher.fetch(vector.url, "image", math.inf)
            found.append((vector.url, ""))
        except ApiError as error:
            found.append((vector.url, error.code))
    return found
