"""TLS as each webhook wants it: whom it trusts, what it shows, which keys it accepts.

The settings of a connection are an `ssl.SSLContext`, and building one costs milliseconds (it reads all the
authorities of the system), so webhooks of one policy share one, and those that were used last are kept.

Python's own defaults differ: 3.13 refuses, as too sloppy, private authorities that 3.11 accepts, and takes an
intermediate authority for an anchor where 3.11 does not. A receiver must not depend on the worker's Python, so
nothing is left to the default: the chain is checked as RFC 5280 says without the stricter reading
(``VERIFY_X509_STRICT``), and any certificate that an operator names as authority is an anchor.
"""

from __future__ import annotations

import hashlib
import os
import ssl
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from types import MappingProxyType
from typing import Final

import attrs

from pggit_reactor.core.egress import TlsVersion
from pggit_reactor.core.model import FailureKind, Webhook
from pggit_reactor.core.secret import Secret
from pggit_reactor.delivery.failures import AttemptError
from pggit_reactor.errors import ConfigurationError

CONTEXTS_MAX: Final = 64
"""A context with the system's authorities holds a megabyte or so."""

_HAS_ANONYMOUS_FILES: Final = hasattr(os, "memfd_create")
_VERSIONS: Final = MappingProxyType(
    {TlsVersion.TLS_1_2: ssl.TLSVersion.TLSv1_2, TlsVersion.TLS_1_3: ssl.TLSVersion.TLSv1_3}
)


@attrs.frozen(kw_only=True)
class TlsPolicy:
    """What a webhook asks of TLS beyond what all connections have. Two that differ share no connection."""

    pins: tuple[str, ...] = ()
    """Where there are any, the receiver's certificate must have the key of one."""
    ca: Secret[str] | None = None
    """PEM: trusted instead of the system's authorities."""
    client_certificate: Secret[str] | None = None
    """PEM: key, certificate and chain, shown to receivers that ask."""
    context_digest: bytes = attrs.field(
        init=False, repr=False, default=attrs.Factory(lambda self: _digest(self.loaded), takes_self=True)
    )
    """Names what of it a context holds."""
    digest: bytes = attrs.field(
        init=False,
        repr=False,
        default=attrs.Factory(lambda self: _digest([*self.loaded, *sorted(self.pins)]), takes_self=True),
    )
    """Names all of it, in the key of a connection."""

    @property
    def loaded(self) -> list[str]:
        """What is loaded into a context, as plain text."""
        return [secret.reveal() if secret else "" for secret in (self.ca, self.client_certificate)]

    @classmethod
    def of(cls, webhook: Webhook) -> TlsPolicy:
        """Return the policy of a webhook."""
        if not webhook.pins and webhook.ca is None and webhook.client_certificate is None:
            return PUBLIC
        return cls(pins=webhook.pins, ca=webhook.ca, client_certificate=webhook.client_certificate)


def _digest(parts: list[str]) -> bytes:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).digest()


PUBLIC: Final = TlsPolicy()
"""The system's authorities, no pins, nothing to show."""

MakeContext = Callable[[], ssl.SSLContext]


def client_context() -> ssl.SSLContext:
    """Return the TLS settings of a connection without a policy: verified, TLS 1.2 or later, the system's authorities.

    ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` of the environment replace the system's authorities (OpenSSL's
    own rule).
    """
    context = _bare_context()
    context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context


class TlsContexts:
    """The contexts of one sender, a bounded number of them."""

    def __init__(
        self, make_context: MakeContext = client_context, *, version_min: TlsVersion = TlsVersion.TLS_1_2
    ) -> None:
        self._make_context = make_context
        self._version_min = _VERSIONS[version_min]
        self._public = self._finished(make_context())
        self._others: OrderedDict[bytes, ssl.SSLContext] = OrderedDict()

    def context(self, policy: TlsPolicy) -> ssl.SSLContext:
        """Return the settings for *policy*; `AttemptError` (tls) where OpenSSL refuses what is in it."""
        if policy.context_digest == PUBLIC.context_digest:
            return self._public
        context = self._others.get(policy.context_digest)
        if context is None:
            context = self._others[policy.context_digest] = self._built(policy)
            while len(self._others) > CONTEXTS_MAX:
                self._others.popitem(last=False)
        self._others.move_to_end(policy.context_digest)
        return context

    def _built(self, policy: TlsPolicy) -> ssl.SSLContext:
        try:
            return self._finished(
                build_context(policy, self._make_context if policy.ca is None else _bare_context)
            )
        except ConfigurationError as error:
            raise AttemptError(FailureKind.TLS, str(error)) from error

    def _finished(self, context: ssl.SSLContext) -> ssl.SSLContext:
        if context.minimum_version < ssl.TLSVersion.TLSv1_2:
            raise ConfigurationError(
                "the TLS context of a sender must have a minimum_version of TLSv1_2 or later"
            )
        context.minimum_version = max(context.minimum_version, self._version_min)
        return context


def build_context(policy: TlsPolicy, make_context: MakeContext) -> ssl.SSLContext:
    """Return *make_context*'s settings with what *policy* adds; `ConfigurationError` says what does not load."""
    context = make_context()
    if policy.ca is not None:
        try:
            context.load_verify_locations(cadata=policy.ca.reveal())
        except (ssl.SSLError, ValueError) as error:
            raise ConfigurationError(
                f"the webhook's private authorities do not load: {_why(error)}"
            ) from error
    if policy.client_certificate is not None:
        try:
            _load_client_certificate(context, policy.client_certificate.reveal())
        except (ssl.SSLError, ValueError) as error:
            raise ConfigurationError(
                f"the webhook's client certificate does not load: {_why(error)}"
            ) from error
    return context


def check_policy(policy: TlsPolicy) -> None:
    """Load *policy* as a delivery would; `ConfigurationError` where OpenSSL refuses it."""
    build_context(policy, _bare_context)


def _bare_context() -> ssl.SSLContext:
    """Return verifying settings that trust nobody yet. ``SSLKEYLOGFILE`` has no say, unlike in Python's default."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False
    context.verify_flags = ssl.VERIFY_X509_TRUSTED_FIRST | ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols(["http/1.1"])
    return context


def _load_client_certificate(context: ssl.SSLContext, pem: str) -> None:
    """Load *pem*, which the ssl module takes from files only: from one in memory, where the system has such."""
    octets = pem.encode("utf-8", "surrogatepass")
    if _HAS_ANONYMOUS_FILES:
        descriptor = os.memfd_create("client certificate", os.MFD_CLOEXEC)
        with os.fdopen(descriptor, "wb") as file:
            file.write(octets)
            file.flush()
            # A machine without /proc gets the file below.
            if os.path.exists(path := f"/proc/self/fd/{descriptor}"):  # noqa: PTH110  # a Path would resolve it
                context.load_cert_chain(path, password=_no_passphrase)
                return
    with tempfile.NamedTemporaryFile() as named:  # mode 0600, and gone a moment later
        named.write(octets)
        named.flush()
        context.load_cert_chain(named.name, password=_no_passphrase)


def _no_passphrase() -> str:
    # Without this OpenSSL would ask the terminal.
    raise ValueError("its key has a passphrase")


def _why(error: ssl.SSLError | ValueError) -> str:
    """Return OpenSSL's name of the reason. Not the text of anything else: nobody knows what it quotes."""
    if isinstance(error, ssl.SSLError):
        return error.reason or "OpenSSL gave no reason"
    return "its key has a passphrase" if "passphrase" in str(error) else "it is not PEM"
