"""The host of a URL: one canonical spelling for each, and a refusal for what programs read differently.

A host that our check takes for a name and a resolver for a number (``2130706433``, ``0x7f.1``, ``127.1``)
is how an address slips past a check; so is a character that becomes another later (a full-width digit,
``%31``). Hence nothing is guessed: a literal address has one spelling, a name is letters, digits and
hyphens after IDNA, and the rest is refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from types import MappingProxyType
from typing import Final

import idna

from pggit_reactor.errors import UrlRefusedError

NAME_CHARS_MAX: Final = 253
LABEL_CHARS_MAX: Final = 63

_HOST_SHOWN_CHARS: Final = 100
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
# The "ends in a number" rule of the URL standard, which is what resolvers (inet_aton) do in effect.
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")

_SPECIAL_SUFFIXES: Final[Mapping[str, str]] = MappingProxyType(
    {
        # IANA's Special-Use Domain Names. All of .arpa is infrastructure: home.arpa, ipv4only.arpa,
        # in-addr.arpa, ...
        "alt": "RFC 9476",
        "arpa": "RFC 3172",
        "example": "RFC 6761",
        "invalid": "RFC 6761",
        "local": "RFC 6762",
        "localhost": "RFC 6761",
        "onion": "RFC 7686",
        "test": "RFC 6761",
        # Reserved by ICANN, and used in private networks in spite of that or because of it.
        "internal": "ICANN 2024",
        "corp": "RFC 6762, appendix G",
        "home": "RFC 6762, appendix G",
        "intranet": "RFC 6762, appendix G",
        "lan": "RFC 6762, appendix G",
        "private": "RFC 6762, appendix G",
        "localdomain": "a custom of /etc/hosts",
        "svc": "services of a Kubernetes cluster, by its search list",
    }
)

_PLATFORM_NAMES: Final = frozenset(
    {
        # Public names that lead to the metadata of the machine that asks. Those under .internal are above.
        "metadata.goog",
        "metadata.tencentyun.com",
        "metadata.packet.net",
        "metadata.platformequinix.com",
        "api.metadata.cloud.ibm.com",
    }
)
"""Their addresses are refused too, where they are special; the last lines of defence are several."""


def parse_host(text: str) -> tuple[str, IPv4Address | IPv6Address | None]:
    """Return the canonical form of a URL's host (given with its brackets), and the address if it is one.

    Names come back in lower-case ASCII, IPv6 literals without brackets. `UrlRefusedError` for whatever has
    another spelling that is the right one, or none.
    """
    if not text:
        raise UrlRefusedError("the URL has no host; want https://host/path")
    if text.startswith("["):
        address = _ipv6_literal(text[1:-1])
        return str(address), address
    if "%" in text:
        raise UrlRefusedError(f"host {shown(text)} has percent-encoding; write its characters themselves")
    name = _ascii_name(text)
    labels = name.split(".")
    if labels[-1] == "":
        raise UrlRefusedError(f"host {shown(text)} ends in a dot; write it without")
    if _NUMBER.fullmatch(labels[-1]):
        return text, _ipv4_literal(text)
    _check_labels(text, labels)
    if not text.isascii() and _folded(text) != _unicode_name(name):
        raise UrlRefusedError(
            f"host {shown(text)} has characters that stand for others; write {shown(name)}, if that is meant"
        )
    return name, None


def special_name(host: str) -> str | None:
    """Return what the canonical name *host* is, if not a public one, as words that follow "is"; else None."""
    if host in _PLATFORM_NAMES or host.endswith(_UNDER_PLATFORM_NAMES):
        return "a name of a cloud platform's metadata"
    *front, last = host.split(".")
    if last in _SPECIAL_SUFFIXES:
        return f"a special name, .{last} ({_SPECIAL_SUFFIXES[last]})"
    return None if front else "a single label, which only a private network resolves"


_UNDER_PLATFORM_NAMES: Final = tuple(f".{name}" for name in sorted(_PLATFORM_NAMES))


def shown(text: str) -> str:
    """Return a host or an address as a message may show it: quoted, ASCII, short."""
    return ascii(text if len(text) <= _HOST_SHOWN_CHARS else text[:_HOST_SHOWN_CHARS] + "...")


def _ipv6_literal(text: str) -> IPv6Address:
    if "%" in text:
        raise UrlRefusedError(
            f"address {shown(text)} has a zone; an address of one machine's link is no receiver's"
        )
    try:
        address = IPv6Address(text)
    except AddressValueError:
        raise UrlRefusedError(f"{shown(text)} in brackets is no IPv6 address") from None
    if text.lower() != str(address):
        raise UrlRefusedError(f"address {shown(text)} is not in canonical form; write [{address}]")
    return address


def _ipv4_literal(text: str) -> IPv4Address:
    try:
        address = IPv4Address(text)
    except AddressValueError:
        address = None
    # Python refuses what inet_aton takes (octal, hexadecimal, fewer parts); a later one might not.
    if address is None or str(address) != text:
        raise UrlRefusedError(
            f"host {shown(text)} is a number in a form that programs read differently;"
            " write an IPv4 address as four decimal numbers"
        )
    return address


def _ascii_name(text: str) -> str:
    """Return *text* in lower-case ASCII; where it has other characters, by UTS 46 and IDNA 2008."""
    if text.isascii():
        return text.lower()
    if len(text) > NAME_CHARS_MAX:
        raise UrlRefusedError(f"host {shown(text)} is too long; at most {NAME_CHARS_MAX} characters")
    try:
        return idna.encode(text, uts46=True, std3_rules=True).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        raise UrlRefusedError(f"host {shown(text)} is no internationalised name (IDNA 2008)") from None


def _folded(text: str) -> str:
    """Return *text* as it may differ from the name that is meant: in case, and in how accents are composed."""
    # Letter by letter: a text as a whole has another last sigma than UTS 46.
    return unicodedata.normalize("NFC", "".join(letter.lower() for letter in text))


def _unicode_name(name: str) -> str | None:
    try:
        return idna.decode(name)
    except (idna.IDNAError, UnicodeError):
        return None


def _check_labels(text: str, labels: list[str]) -> None:
    if sum(map(len, labels)) + len(labels) - 1 > NAME_CHARS_MAX:
        raise UrlRefusedError(f"host {shown(text)} is too long; at most {NAME_CHARS_MAX} characters")
    for label in labels:
        if label == "":
            raise UrlRefusedError(f"host {shown(text)} has an empty label; write one dot between labels")
        if len(label) > LABEL_CHARS_MAX:
            raise UrlRefusedError(f"host {shown(text)} has a label of over {LABEL_CHARS_MAX} characters")
        if not _LABEL.fullmatch(label):
            raise UrlRefusedError(
                f"host {shown(text)} is no host name; want labels of letters, digits and inner hyphens"
            )
        if label.startswith("xn--") and not _is_a_label(label):
            raise UrlRefusedError(
                f"host {shown(text)} has a label that starts with xn-- but is not IDNA 2008"
            )


def _is_a_label(label: str) -> bool:
    """Whether *label* is the one encoding of what it decodes to."""
    try:
        return idna.alabel(idna.ulabel(label)) == label.encode("ascii")
    except (idna.IDNAError, UnicodeError):
        return False
