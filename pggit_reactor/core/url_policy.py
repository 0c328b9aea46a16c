"""The gate against server-side request forgery: may a webhook's URL and the addresses behind it be used?

A URL is judged when it is registered and again at every connection, and each time in two steps.
`parse_target` reads the URL, once, into the parts that the connection is made of: nobody parses the text
again, so that no second parser can see another host. `judge_addresses` is then given every address that the
name resolved to, and the dialer connects to what it returns and to nothing else: no second look-up can
bring another answer (DNS rebinding), and one bad address among good ones refuses them all, since whoever
answers for a name chooses which one we would take.

Redirects are never followed, so that there is no third step.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address
from typing import Final

import attrs

from pggit_reactor.core.egress import PORT_DEFAULT, EgressEntry, EgressRules
from pggit_reactor.core.host_names import parse_host, shown, special_name
from pggit_reactor.core.secret import Secret
from pggit_reactor.core.special_networks import Address, special_kind
from pggit_reactor.errors import UrlRefusedError

__all__ = ["URL_CHARS_MAX", "EgressEntry", "EgressRules", "Target", "judge_addresses", "parse_target"]

URL_CHARS_MAX: Final = 2048

_SCHEME: Final = "https://"
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")
_PORT_MAX: Final = 65_535


@attrs.frozen(kw_only=True)
class Target:
    """Where a request goes: a URL that was read and may be resolved."""

    host: str
    """A name in lower-case ASCII, or an address (IPv6 without brackets): for SNI and certificate."""
    port: int
    path_and_query: Secret[str]
    """The request target, from the slash on. It often holds the receiver's token."""
    literal: Address | None
    """The address where the host is one: there is nothing to resolve."""

    @property
    def authority(self) -> str:
        """The Host field: ``host``, or ``host:port`` where the port is not 443."""
        host = f"[{self.host}]" if isinstance(self.literal, IPv6Address) else self.host
        return host if self.port == PORT_DEFAULT else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """``https://`` and the authority: what people, logs and errors may see of the URL."""
        return _SCHEME + self.authority


def parse_target(url: str, rules: EgressRules) -> Target:
    """Return the target of *url*; `UrlRefusedError` says what is wrong with it, without its path.

    A literal address is judged here; a name is, as far as a name can be. A special name, or a port that
    ``egress.ports`` does not have, passes only where ``egress.unsafe_allow`` frees that port somewhere:
    `judge_addresses` then sees whether it is there.
    """
    _check_characters(url)
    authority, path_and_query = _split_url(url)
    host_text, port = _split_authority(authority)
    host, literal = parse_host(host_text)
    target = Target(host=host, port=port, path_and_query=Secret(path_and_query), literal=literal)
    if literal is not None:
        judge_addresses(target, (literal,), rules)
    elif not rules.frees_port(port) and (objection := _objection(target, rules)):
        raise UrlRefusedError(objection)
    return target


def judge_addresses(
    target: Target, addresses: Sequence[str | Address], rules: EgressRules
) -> tuple[Address, ...]:
    """Return *addresses*, in their order and each once, if a connection to any of them is allowed.

    *addresses* is all that the target's host resolved to: one that is bad refuses all, and so does having
    none.
    """
    if not addresses:
        raise UrlRefusedError(f"{target.origin}: the name has no address")
    judged = tuple(dict.fromkeys(_address(target, address) for address in addresses))
    objection = _objection(target, rules)
    for address in judged:
        _judge(target, address, rules, objection)
    return judged


def _check_characters(url: str) -> None:
    """Refuse what some parser drops, maps or takes for something else, wherever in the URL it stands."""
    if len(url) > URL_CHARS_MAX:
        raise UrlRefusedError(f"the URL has {len(url)} characters; at most {URL_CHARS_MAX} are allowed")
    # Of all white space, only the space itself counts as printable.
    if " " in url or not url.isprintable():
        raise UrlRefusedError(
            "the URL has white space, control or invisible characters; write them percent-encoded"
        )
    if "\\" in url:
        raise UrlRefusedError("the URL has a backslash, which some programs take for a slash; write / or %5C")
    if "#" in url:
        raise UrlRefusedError(
            "the URL has a fragment (from # on), which is never sent; leave it out, or write %23"
        )


def _split_url(url: str) -> tuple[str, str]:
    if url[: len(_SCHEME)].lower() != _SCHEME:
        raise UrlRefusedError("the URL does not start with https://; no other scheme is allowed")
    rest = url[len(_SCHEME) :]
    end = min((position for mark in "/?" if (position := rest.find(mark)) >= 0), default=len(rest))
    authority, tail = rest[:end], rest[end:]
    if not tail.isascii():
        raise UrlRefusedError(
            "the URL's path or query has characters outside ASCII; write them percent-encoded"
        )
    return authority, tail if tail.startswith("/") else "/" + tail


def _split_authority(authority: str) -> tuple[str, int]:
    """Return the host, brackets and all, and the port. Messages show nothing of what may be a password."""
    if "@" in authority:
        raise UrlRefusedError(
            "the URL has user info (before @); a receiver's token belongs into a header of the webhook"
        )
    if authority.startswith("["):
        host, bracket, rest = authority.partition("]")
        if not bracket or rest[:1] not in {"", ":"}:
            raise UrlRefusedError(
                "the URL's brackets do not match; want https://[address] or https://[address]:port"
            )
        return host + bracket, _port(rest[1:] if rest else None)
    host, colon, rest = authority.partition(":")
    if ":" in rest:
        raise UrlRefusedError("the URL's host has two colons; write an IPv6 address in brackets")
    return host, _port(rest if colon else None)


def _port(text: str | None) -> int:
    if text is None:
        return PORT_DEFAULT
    if not _PORT.fullmatch(text) or int(text) > _PORT_MAX:
        raise UrlRefusedError(f"the URL's port is no number from 1 to {_PORT_MAX} without leading zeros")
    return int(text)


def _address(target: Target, address: str | Address) -> Address:
    where = f"{target.origin}: address {shown(str(address))}"
    try:
        parsed = ip_address(address) if isinstance(address, str) else address
    except ValueError:
        raise UrlRefusedError(f"{where} is none; the resolver answered nonsense") from None
    if isinstance(parsed, IPv6Address) and parsed.scope_id is not None:
        raise UrlRefusedError(f"{where} has a zone; it is of one machine's link")
    if target.literal is not None and parsed != target.literal:
        raise UrlRefusedError(f"{where} is not the one in the URL")
    return parsed


def _objection(target: Target, rules: EgressRules) -> str | None:
    """Return why name or port are refused unless ``unsafe_allow`` frees all addresses; None if not."""
    if target.port not in rules.ports:
        allowed = ", ".join(map(str, sorted(rules.ports)))
        return (
            f"{target.origin}: port {target.port} is not allowed; allowed: {allowed} (setting egress.ports)"
        )
    if target.literal is None and (what := special_name(target.host)):
        return f"{target.origin}: the host is {what}; want a public name (or an entry of egress.unsafe_allow)"
    return None


def _judge(target: Target, address: Address, rules: EgressRules, objection: str | None) -> None:
    where = f"{target.origin}: address {address}"
    if rules.denies(address, target.port):
        raise UrlRefusedError(f"{where} is in the setting egress.deny")
    if rules.frees(address, target.port):
        return
    if objection:
        raise UrlRefusedError(objection)
    if what := special_kind(address):
        raise UrlRefusedError(f"{where} is {what}; want a public one (or an entry of egress.unsafe_allow)")
    if not rules.allows(address, target.port):
        raise UrlRefusedError(f"{where} is not in the setting egress.allow")
