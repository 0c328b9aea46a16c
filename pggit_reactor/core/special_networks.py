"""Which addresses are not plain global unicast, and why.

The tables are the IANA special-purpose address registries for IPv4 and IPv6 (RFC 6890; read as of 2025-10),
the multicast and reserved spaces, and the addresses at which cloud platforms answer their own machines.
Python's ``is_global`` is not asked: it differs between versions, calls some anycast and protocol addresses
global (PCP at 192.0.0.9 is the nearest NAT), and knows nothing of platforms whose own address is in public
space (Azure's 168.63.129.16).

Every registered block is here, those marked "globally reachable" too: no webhook receiver lives in an
anycast sink or in an identifier space. IPv6 outside 2000::/3 is refused as a whole, so that a block
registered tomorrow is refused today. What nobody can see from an address is a NAT64 prefix of a provider's
own (RFC 6052, 2.2): the setting egress.deny is for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# In both tables the narrow block stands before the wide one that holds it: the first match names the reason.
SPECIAL_IPV4: Final[tuple[tuple[IPv4Network, str], ...]] = tuple(
    (IPv4Network(block), what)
    for block, what in (
        ("169.254.169.254/32", "a cloud metadata address"),
        ("169.254.170.2/32", "a cloud metadata address (ECS)"),
        ("169.254.170.23/32", "a cloud metadata address (EKS)"),
        ("168.63.129.16/32", "a cloud platform address (Azure)"),
        ("100.100.100.200/32", "a cloud metadata address (Alibaba)"),
        ("192.0.0.192/32", "a cloud metadata address (Oracle)"),
        ("0.0.0.0/8", "of this network (RFC 791)"),
        ("10.0.0.0/8", "private (RFC 1918)"),
        ("100.64.0.0/10", "shared address space (RFC 6598)"),
        ("127.0.0.0/8", "loopback (RFC 1122)"),
        ("169.254.0.0/16", "link-local (RFC 3927)"),
        ("172.16.0.0/12", "private (RFC 1918)"),
        ("192.0.0.0/24", "for protocols (RFC 6890)"),
        ("192.0.2.0/24", "for documentation (RFC 5737)"),
        ("192.31.196.0/24", "an AS112 sink (RFC 7535)"),
        ("192.52.193.0/24", "AMT anycast (RFC 7450)"),
        ("192.88.99.0/24", "6to4 relay anycast (RFC 7526)"),
        ("192.168.0.0/16", "private (RFC 1918)"),
        ("192.175.48.0/24", "an AS112 sink (RFC 7534)"),
        ("198.18.0.0/15", "for benchmarks (RFC 2544)"),
        ("198.51.100.0/24", "for documentation (RFC 5737)"),
        ("203.0.113.0/24", "for documentation (RFC 5737)"),
        ("224.0.0.0/4", "multicast (RFC 5771)"),
        ("255.255.255.255/32", "broadcast (RFC 919)"),
        ("240.0.0.0/4", "reserved (RFC 1112)"),
    )
)

GLOBAL_UNICAST_IPV6: Final = IPv6Network("2000::/3")

SPECIAL_IPV6: Final[tuple[tuple[IPv6Network, str], ...]] = tuple(
    (IPv6Network(block), what)
    for block, what in (
        ("fd00:ec2::254/128", "a cloud metadata address (EC2)"),
        ("fd00:ec2::23/128", "a cloud metadata address (EKS)"),
        ("fd20:ce::254/128", "a cloud metadata address (Google)"),
        ("::/128", "unspecified (RFC 4291)"),
        ("::1/128", "loopback (RFC 4291)"),
        ("::ffff:0:0/96", "IPv4-mapped (RFC 4291)"),
        ("::/96", "IPv4-compatible (RFC 4291)"),
        ("::ffff:0:0:0/96", "IPv4-translated (RFC 2765)"),
        ("64:ff9b::/96", "NAT64 (RFC 6052)"),
        ("64:ff9b:1::/48", "local NAT64 (RFC 8215)"),
        ("100::/64", "a sink (RFC 6666)"),
        ("100:0:0:1::/64", "a dummy prefix (RFC 9780)"),
        ("2001::/32", "Teredo (RFC 4380)"),
        ("2001:2::/48", "for benchmarks (RFC 5180)"),
        ("2001:3::/32", "AMT anycast (RFC 7450)"),
        ("2001:4:112::/48", "an AS112 sink (RFC 7535)"),
        ("2001:10::/28", "ORCHID (RFC 4843)"),
        ("2001:20::/28", "ORCHIDv2 (RFC 7343)"),
        ("2001:30::/28", "a drone's identifier (RFC 9374)"),
        ("2001::/23", "for protocols (RFC 2928)"),
        ("2001:db8::/32", "for documentation (RFC 3849)"),
        ("2002::/16", "6to4 (RFC 3056)"),
        ("2620:4f:8000::/48", "an AS112 sink (RFC 7534)"),
        ("3ffe::/16", "of the former 6bone (RFC 3701)"),
        ("3fff::/20", "for documentation (RFC 9637)"),
        ("5f00::/16", "a segment routing identifier (RFC 9602)"),
        ("fc00::/7", "unique local (RFC 4193)"),
        ("fe80::/10", "link-local (RFC 4291)"),
        ("fec0::/10", "site-local (RFC 3879)"),
        ("ff00::/8", "multicast (RFC 4291)"),
    )
)

# The upper half of an ISATAP interface identifier (RFC 5214, 6.1), without and with the "universal" bit.
_ISATAP: Final = frozenset({0x0000_5EFE, 0x0200_5EFE})

_LOW_32: Final = 0xFFFF_FFFF
_EMBEDS_IN_LOW_32: Final = tuple(
    IPv6Network(block)
    for block in ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48")
)
_LOCAL_NAT64: Final = IPv6Network("64:ff9b:1::/48")
_TEREDO: Final = IPv6Network("2001::/32")
_6TO4: Final = IPv6Network("2002::/16")


def special_kind(address: Address) -> str | None:
    """Return what *address* is, if not plain global unicast, as words that follow "is"; else None."""
    if isinstance(address, IPv4Address):
        return next((what for block, what in SPECIAL_IPV4 if address in block), None)
    for block, what in SPECIAL_IPV6:
        if address in block:
            return what
    if address not in GLOBAL_UNICAST_IPV6:
        return "outside global unicast, 2000::/3 (RFC 4291)"
    return "ISATAP (RFC 5214)" if _is_isatap(address) else None


def embedded_ipv4(address: Address) -> tuple[IPv4Address, ...]:
    """Return each IPv4 address that some gateway might take out of *address*; none for most."""
    if isinstance(address, IPv4Address):
        return ()
    return tuple(dict.fromkeys(IPv4Address(octets & _LOW_32) for octets in _embedded(address)))


def _embedded(address: IPv6Address) -> Iterator[int]:
    bits = int(address)
    if any(address in block for block in _EMBEDS_IN_LOW_32) or _is_isatap(address):
        yield bits
    if address in _LOCAL_NAT64:
        # RFC 6052, 2.2, for prefixes of 48, 56 and 64 bits in it: the address lies around or behind the
        # octet "u".
        yield (bits >> 64 & 0xFFFF) << 16 | bits >> 40 & 0xFFFF
        yield (bits >> 64 & 0xFF) << 24 | bits >> 32 & 0xFF_FFFF
        yield bits >> 24
    if address in _6TO4:
        yield bits >> 80
    if address in _TEREDO:
        yield bits >> 64  # The server.
        yield ~bits  # The client, each bit inverted.


def _is_isatap(address: IPv6Address) -> bool:
    return int(address) >> 32 & _LOW_32 in _ISATAP
