"""Which IP addresses belong to the public internet.

Ours is an allow-list for IPv6 (global unicast, RFC 4291) and a deny-list for IPv4 (IANA's registry
of special-purpose addresses, RFC 6890, and more), since ``ipaddress.is_global`` takes multicast,
6to4, NAT64, ISATAP and site-local addresses for public ones.
"""

import socket
from contextlib import closing
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

IPAddress = IPv4Address | IPv6Address

_NOT_PUBLIC_V4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",
            "100.64.0.0/10",  # shared by carriers; 100.100.100.200 is Alibaba's metadata service
            "127.0.0.0/8",
            "168.63.129.16/32",  # Azure's platform service, at a public address
            "169.254.0.0/16",  # link-local, with the metadata services of most clouds
            "172.16.0.0/12",
            "192.0.0.0/24",  # protocol assignments; 192.0.0.192 is Oracle's metadata service
            "192.0.2.0/24",
            "192.31.196.0/24",  # AS112, which answers for private addresses
            "192.52.193.0/24",  # tunnels (AMT)
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",
            "192.175.48.0/24",  # AS112
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
        ),
    )
)
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments, with the tunnels of Teredo
            "2001:db8::/32",
            "2002::/16",  # 6to4, a tunnel to any IPv4 address
            "2620:4f:8000::/48",  # AS112
            "3fff::/20",
        ),
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")
_ISATAP = (b"\x00\x00\x5e\xfe", b"\x02\x00\x5e\xfe")


def is_public(address: IPAddress) -> bool:
    """Whether anybody on the internet may be at this address.

    An address that stands for an IPv4 address counts as that one: IPv4-mapped and NAT64, as
    resolvers give them for public hosts, and interface identifiers of ISATAP. All other forms
    (6to4, Teredo, IPv4-compatible, NAT64 of local use) and those with a zone are not public.

    >>> is_public(IPv4Address("9.9.9.9")), is_public(IPv6Address("64:ff9b::a00:1"))
    (True, False)
    """
    if isinstance(address, IPv4Address):
        return address.is_global and not any(address in network for network in _NOT_PUBLIC_V4)
    if address.scope_id is not None:
        return False
    embedded = _stands_for(address)
    if embedded is not None:
        return is_public(embedded)
    return (
        address in _GLOBAL_UNICAST
        and not any(address in network for network in _NOT_PUBLIC_V6)
        and not (_is_isatap(address) and not is_public(_last_four(address)))
    )


def _stands_for(address: IPv6Address) -> IPv4Address | None:
    return _last_four(address) if address in _NAT64 else address.ipv4_mapped


def _is_isatap(address: IPv6Address) -> bool:
    return address.packed[8:12] in _ISATAP


def _last_four(address: IPv6Address) -> IPv4Address:
    return IPv4Address(address.packed[12:])


def is_own(address: IPAddress) -> bool:
    """Whether it is an address of this machine: then the kernel would also send from it. Nothing is
    sent to find out."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with closing(socket.socket(family, socket.SOCK_DGRAM)) as probe:
            probe.connect((str(address), 9))
            return ip_address(probe.getsockname()[0]) == address
    except OSError:
        return False
