"""`ca=@FILE` and `client_certificate=@FILE`: what is read from the file, and whether it may be registered."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from pggit_reactor.cli.private_files import warn_of_mode
from pggit_reactor.errors import ConfigurationError

if TYPE_CHECKING:
    from pggit_reactor.security.certificates import RegisteredCertificates

CERTIFICATE_KEYS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "ca": "@FILE with authorities (PEM) to trust instead of the public ones, sealed",
        "client_certificate": "@FILE with key, certificate and chain (PEM) to show the receiver, sealed",
    }
)


def read_certificates(name: str, value: str, *, wall_now: float) -> RegisteredCertificates | None:
    """Return what the file of *value* holds for the key *name*; None where *value* is empty: take it away.

    `ConfigurationError` says what is wrong. What OpenSSL would not load at a delivery is refused too.
    """

    from pggit_reactor.delivery.tls import TlsPolicy, check_policy
    from pggit_reactor.security.certificates import read_authorities, read_client_certificate

    if not value:
        return None
    if not value.startswith("@"):
        raise ConfigurationError(f"{name} is wrong; right is {CERTIFICATE_KEYS[name]}")
    octets = _read(name, Path(value[1:]))
    now = datetime.fromtimestamp(wall_now, UTC)
    if name == "ca":
        found = read_authorities(octets, what=name, now=now)
        check_policy(TlsPolicy(ca=found.pem))
    else:
        found = read_client_certificate(octets, what=name, now=now)
        check_policy(TlsPolicy(client_certificate=found.pem))
    return found


def _read(name: str, path: Path) -> bytes:
    from pggit_reactor.security.certificates import FILE_OCTETS_MAX

    try:
        with path.open("rb") as file:
            if name == "client_certificate":
                warn_of_mode(path, file.fileno())
            return file.read(FILE_OCTETS_MAX + 1)
    except OSError as error:
        raise ConfigurationError(f"{name}: cannot read {path}: {error.strerror}") from None
