"""Where deliveries may go: the settings of section ``egress``, as values.

``deny`` wins over everything. ``unsafe_allow`` frees an address and a port from the rest of the policy. All
other addresses must be global unicast and, where ``allow`` names networks, lie in one of them; all other
ports must be among ``ports``. ``allow`` narrows, and frees nothing.
"""

from __future__ import annotations

import re
from enum import StrEnum
from ipaddress import ip_network
from typing import Final

import attrs

from pggit_reactor.core.special_networks import Address, Network, embedded_ipv4
from pggit_reactor.errors import ConfigurationError

PORT_DEFAULT: Final = 443
ENTRIES_MAX: Final = 1000
"""Of one list. Each connection is judged against all of them."""

_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")
_PORT_MAX: Final = 65_535
_UNSAFE: Final = re.compile(
    r"(?:\[(?P<six>[0-9a-f:.]+)(?:\]|(?P<in>/[0-9]{1,3})\]|\](?P<out>/[0-9]{1,3}))|(?P<four>[0-9.]+(?:/[0-9]{1,2})?))"
    r":(?P<port>\*|[0-9]+)",
    re.IGNORECASE,
)


class TlsVersion(StrEnum):
    """``egress.tls_min_version``: the least version of TLS that is agreed on."""

    TLS_1_2 = "1.2"
    TLS_1_3 = "1.3"


@attrs.frozen(kw_only=True)
class UnsafeEntry:
    """One entry of ``egress.unsafe_allow``: a network, and a port of it or (None) all."""

    network: Network
    port: int | None

    def __str__(self) -> str:
        text = str(self.network)
        return (
            f"{text if self.network.version == 4 else f'[{text}]'}:{'*' if self.port is None else self.port}"
        )

    def frees_port(self, port: int) -> bool:
        """Whether *port* is free at some address."""
        return self.port is None or self.port == port

    def frees(self, address: Address, port: int) -> bool:
        """Whether *address* is free at *port*. No IPv4 network frees an IPv6 address."""
        return self.frees_port(port) and address in self.network


@attrs.frozen(kw_only=True)
class EgressRules:
    """The egress policy. Without arguments: port 443 of every global unicast address."""

    ports: frozenset[int] = frozenset({PORT_DEFAULT})
    allow: tuple[Network, ...] = ()
    deny: tuple[Network, ...] = ()
    unsafe_allow: tuple[UnsafeEntry, ...] = ()
    tls_version_min: TlsVersion = TlsVersion.TLS_1_2

    @classmethod
    def parse(
        cls,
        *,
        ports: str = str(PORT_DEFAULT),
        allow: str = "",
        deny: str = "",
        unsafe_allow: str = "",
        tls_version_min: TlsVersion = TlsVersion.TLS_1_2,
    ) -> EgressRules:
        """Return the rules that the texts of the settings mean; `ConfigurationError` if one is bad."""
        return cls(
            ports=parse_ports(ports),
            allow=parse_networks(allow, setting="egress.allow"),
            deny=parse_networks(deny, setting="egress.deny"),
            unsafe_allow=parse_unsafe_allow(unsafe_allow),
            tls_version_min=tls_version_min,
        )

    def frees_port(self, port: int) -> bool:
        """Whether ``unsafe_allow`` frees *port* at some address."""
        return any(entry.frees_port(port) for entry in self.unsafe_allow)

    def frees(self, address: Address, port: int) -> bool:
        """Whether ``unsafe_allow`` frees *address* at *port*."""
        return any(entry.frees(address, port) for entry in self.unsafe_allow)

    def denies(self, address: Address) -> bool:
        """Whether ``deny`` holds *address*, or one that a gateway might take out of it."""
        return any(inner in network for inner in (address, *embedded_ipv4(address)) for network in self.deny)

    def allows(self, address: Address) -> bool:
        """Whether ``allow`` is empty or holds *address*."""
        return not self.allow or any(address in network for network in self.allow)


def parse_ports(text: str) -> frozenset[int]:
    """Return the ports of a text such as ``443,8443``; at least one."""
    ports = frozenset(_port(item, setting="egress.ports") for item in _items(text, setting="egress.ports"))
    if not ports:
        raise ConfigurationError("egress.ports names no port; want ports such as 443 or 443,8443")
    return ports


def parse_networks(text: str, *, setting: str) -> tuple[Network, ...]:
    """Return the networks of a text such as ``192.168.7.0/24,fd00::/8``; an address is a network of one."""
    return tuple(_network(item, setting=setting) for item in _items(text, setting=setting))


def parse_unsafe_allow(text: str) -> tuple[UnsafeEntry, ...]:
    """Return the entries of a text such as ``127.0.0.0/8:*,[::1]:*,[fd00::/8]:8443``."""
    return tuple(_unsafe_entry(item) for item in _items(text, setting="egress.unsafe_allow"))


def _items(text: str, *, setting: str) -> list[str]:
    items = [stripped for item in text.split(",") if (stripped := item.strip())]
    if len(items) > ENTRIES_MAX:
        raise ConfigurationError(f"{setting} has {len(items)} entries; at most {ENTRIES_MAX} are allowed")
    return items


def _port(text: str, *, setting: str) -> int:
    if not _PORT.fullmatch(text) or int(text) > _PORT_MAX:
        raise ConfigurationError(f"{setting} has {text!r}; want a port from 1 to {_PORT_MAX}")
    return int(text)


def _network(text: str, *, setting: str) -> Network:
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ConfigurationError(
            f"{setting} has {text!r}; want a network such as 192.168.0.0/24 or fd00::/8, not a name"
        ) from None
    address = text.partition("/")[0]
    # Bits beyond the prefix are a slip of the pen: was the address meant, or the network?
    if "/" in text and network.network_address != ip_network(address).network_address:
        raise ConfigurationError(
            f"{setting} has {text!r}, with bits set after its prefix; want {network} or {address}"
        )
    return network


def _unsafe_entry(text: str) -> UnsafeEntry:
    match = _UNSAFE.fullmatch(text)
    if not match:
        raise ConfigurationError(
            f"egress.unsafe_allow has {text!r}; want NETWORK:PORT or NETWORK:*, as 127.0.0.0/8:* or [::1]:443"
        )
    network = match["four"] or match["six"] + (match["in"] or match["out"] or "")
    return UnsafeEntry(
        network=_network(network, setting="egress.unsafe_allow"),
        port=None if match["port"] == "*" else _port(match["port"], setting="egress.unsafe_allow"),
    )
