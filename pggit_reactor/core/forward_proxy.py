"""``egress.proxy_url``: the forward proxy that requests go through, where there is one.

The URL policy does not judge the proxy: an operator names it on purpose, and it commonly lies inside. It judges
what the proxy is asked to connect to, and asks for that by address, so that the proxy looks nothing up.
"""

from __future__ import annotations

import base64
import re
from ipaddress import ip_address
from typing import Final
from urllib.parse import unquote_to_bytes

import attrs

from pggit_reactor.core.secret import Secret
from pggit_reactor.errors import ConfigurationError

_RIGHT: Final = "right is http://HOST:PORT or http://USER:PASSWORD@HOST:PORT"
_URL: Final = re.compile(
    r"http://(?:(?P<user>[^@/?#\s]*)@)?(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[1-9][0-9]{0,4})/?"
)
_PORT_MAX: Final = 65_535


@attrs.frozen(kw_only=True)
class ForwardProxy:
    """A proxy that is asked to CONNECT (RFC 9110, 9.3.6)."""

    host: str
    """A name, or an address without brackets."""
    port: int
    authorization: Secret[str] | None = None
    """The value of Proxy-Authorization."""

    def __str__(self) -> str:
        """Its URL without the credentials: what people and logs may see."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def parse_proxy(text: str) -> ForwardProxy:
    """Return the proxy that *text* names; `ConfigurationError` without quoting it, for it may hold a password."""
    if text.lower().startswith("https://"):
        raise ConfigurationError(
            f"egress.proxy_url is an https proxy, which is not supported (receivers are reached by TLS through it "
            f"all the same); {_RIGHT}"
        )
    match = _URL.fullmatch(text)
    if match is None or int(match["port"]) > _PORT_MAX:
        raise ConfigurationError(f"egress.proxy_url is not the URL of a proxy; {_RIGHT}")
    return ForwardProxy(
        host=_host(match["host"]), port=int(match["port"]), authorization=_authorization(match["user"])
    )


def _host(text: str) -> str:
    if not text.startswith("["):
        return text.lower()
    try:
        return str(ip_address(text[1:-1]))
    except ValueError:
        raise ConfigurationError(f"egress.proxy_url has brackets without an IPv6 address; {_RIGHT}") from None


def _authorization(user_info: str | None) -> Secret[str] | None:
    if not user_info:
        return None
    user, _, password = user_info.partition(":")
    # RFC 7617: the user's name cannot hold a colon.
    octets = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
    return Secret("Basic " + base64.b64encode(octets).decode("ascii"))
