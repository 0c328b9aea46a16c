"""Where deliveries may go: the settings of section ``egress``, as values.

``deny`` wins over everything. ``unsafe_allow`` frees an address and a port from the rest of the policy. All
other addresses must be global unicast and, where ``allow`` has entries, be meant by one of them; all other
ports must be among ``ports``. ``allow`` narrows, and frees nothing.
"""

from __future__ import annotations

import re
from enum import StrEnum
from ipaddress import ip_network
from typing import Final

import attrs

from pggit_reactor.core.forward_proxy import ForwardProxy, parse_proxy
from pggit_reactor.core.secret import Secret
from pggit_reactor.core.special_networks import Address, Network, embedded_ipv4
from pggit_reactor.errors import ConfigurationError

PORT_DEFAULT: Final = 443
ENTRIES_MAX: Final = 1000
"""Of one list. Each connection is judged against all of them."""

_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")
_PORT_MAX: Final = 65_535
_WITH_PORT: Final = re.compile(
    r"(?:\[(?P<six>[0-9a-f:.]+)(?:\]|(?P<in>/[0-9]{1,3})\]|\](?P<out>/[0-9]{1,3}))|(?P<four>[0-9.]+(?:/[0-9]{1,2})?))"
    r":(?P<port>\*|[0-9]+)",
    re.IGNORECASE,
)


class TlsVersion(StrEnum):
    """``egress.tls_min_version``: the least version of TLS that is agreed on."""

    TLS_1_2 = "1.2"
    TLS_1_3 = "1.3"


@attrs.frozen(kw_only=True)
class EgressEntry:
    """One entry of ``egress.allow``, ``deny`` or ``unsafe_allow``: a network, and a port of it or (None) all."""

    network: Network
    port: int | None

    def __str__(self) -> str:
        text = str(self.network)
        return (
            f"{text if self.network.version == 4 else f'[{text}]'}:{'*' if self.port is None else self.port}"
        )

    def has_port(self, port: int) -> bool:
        """Whether *port* is meant at some address."""
        return self.port is None or self.port == port

    def holds(self, address: Address, port: int) -> bool:
        """Whether *address* is meant at *port*. No IPv4 network holds an IPv6 address."""
        return self.has_port(port) and address in self.network


@attrs.frozen(kw_only=True)
class EgressRules:
    """The egress policy. Without arguments: port 443 of every global unicast address."""

    ports: frozenset[int] = frozenset({PORT_DEFAULT})
    allow: tuple[EgressEntry, ...] = ()
    deny: tuple[EgressEntry, ...] = ()
    unsafe_allow: tuple[EgressEntry, ...] = ()
    tls_version_min: TlsVersion = TlsVersion.TLS_1_2
    proxy: ForwardProxy | None = None

    @classmethod
    def parse(
        cls,
        *,
        ports: str = str(PORT_DEFAULT),
        allow: str = "",
        deny: str = "",
        unsafe_allow: str = "",
        tls_version_min: TlsVersion = TlsVersion.TLS_1_2,
        proxy_url: Secret[str] | None = None,
    ) -> EgressRules:
        """Return the rules that the texts of the settings mean; `ConfigurationError` if one is bad."""
        return cls(
            ports=parse_ports(ports),
            allow=parse_entries(allow, setting="egress.allow"),
            deny=parse_entries(deny, setting="egress.deny"),
            unsafe_allow=parse_unsafe_allow(unsafe_allow),
            tls_version_min=tls_version_min,
            proxy=None if proxy_url is None else parse_proxy(proxy_url.reveal().strip()),
        )

    def frees_port(self, port: int) -> bool:
        """Whether ``unsafe_allow`` frees *port* at some address."""
        return any(entry.has_port(port) for entry in self.unsafe_allow)

    def frees(self, address: Address, port: int) -> bool:
        """Whether ``unsafe_allow`` frees *address* at *port*."""
        return any(entry.holds(address, port) for entry in self.unsafe_allow)

    def denies(self, address: Address, port: int) -> bool:
        """Whether ``deny`` holds *address* at *port*, or an address that a gateway might take out of it."""
        inner = (address, *embedded_ipv4(address))
        return any(entry.holds(one, port) for one in inner for entry in self.deny)

    def allows(self, address: Address, port: int) -> bool:
        """Whether ``allow`` is empty or holds *address* at *port*."""
        return not self.allow or any(entry.holds(address, port) for entry in self.allow)


def parse_ports(text: str) -> frozenset[int]:
    """Return the ports of a text such as ``443,8443``; at least one."""
    ports = frozenset(_port(item, setting="egress.ports") for item in _items(text, setting="egress.ports"))
    if not ports:
        raise ConfigurationError("egress.ports names no port; want ports such as 443 or 443,8443")
    return ports


def parse_entries(text: str, *, setting: str) -> tuple[EgressEntry, ...]:
    """Return the entries of a text such as ``192.168.7.0/24,fd00::/8,10.0.0.0/8:8443,[fd00::/8]:8443``.

    An address is a network of one; without a port all are meant.
    """
    return tuple(_entry(item, setting=setting) for item in _items(text, setting=setting))


def parse_unsafe_allow(text: str) -> tuple[EgressEntry, ...]:
    """Return the entries of a text such as ``127.0.0.0/8:*,[::1]:*,[fd00::/8]:8443``."""
    setting = "egress.unsafe_allow"
    return tuple(_entry(item, setting=setting, with_port=True) for item in _items(text, setting=setting))


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


def _entry(text: str, *, setting: str, with_port: bool = False) -> EgressEntry:
    match = _WITH_PORT.fullmatch(text)
    if match:
        network = match["four"] or match["six"] + (match["in"] or match["out"] or "")
        port = None if match["port"] == "*" else _port(match["port"], setting=setting)
        return EgressEntry(network=_network(network, setting=setting), port=port)
    if with_port:
        # What frees is said in full: nobody shall free all ports by forgetting one.
        raise ConfigurationError(
            f"{setting} has {text!r}; want NETWORK:PORT or NETWORK:*, as 127.0.0.0/8:* or [::1]:443"
        )
    return EgressEntry(network=_network(text, setting=setting), port=None)
