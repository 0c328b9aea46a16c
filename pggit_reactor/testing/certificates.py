"""Certificates for receivers in tests: good ones, and one for each way of being bad."""

from __future__ import annotations

import datetime
import ssl
from enum import StrEnum
from pathlib import Path
from typing import Final

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "::1")
_WRONG_NAME: Final = "somebody-else.example"
_LONG_AGO: Final = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)
_LESS_LONG_AGO: Final = datetime.datetime(2002, 1, 1, tzinfo=datetime.UTC)
_FAR_AWAY: Final = datetime.datetime(2090, 1, 1, tzinfo=datetime.UTC)
_FARTHER_AWAY: Final = datetime.datetime(2091, 1, 1, tzinfo=datetime.UTC)


class Certificate(StrEnum):
    """What a receiver shows in its handshake."""

    GOOD = "good"
    EXPIRED = "expired"
    NOT_YET_VALID = "not yet valid"
    WRONG_NAME = "wrong name"
    SELF_SIGNED = "self-signed"
    UNTRUSTED = "untrusted"


class Authority:
    """A certificate authority; senders trust it by its PEM file, whatever process they are in."""

    def __init__(self, folder: Path) -> None:
        self._trusted = trustme.CA()
        self.ca_file = folder / "ca.pem"
        """For ``SSL_CERT_FILE``, or for `client_context`."""
        self._trusted.cert_pem.write_to_path(str(self.ca_file))

    def client_context(self) -> ssl.SSLContext:
        """Return a client's settings that trust this authority and no other."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # not everybody's default: Debian's Python has none
        return context

    def server_context(
        self, certificate: Certificate = Certificate.GOOD, *, names: tuple[str, ...] = LOOPBACK_NAMES
    ) -> ssl.SSLContext:
        """Return a server's settings that show *certificate*, made out to *names*."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        if certificate is Certificate.SELF_SIGNED:
            _load_self_signed(context, names)
        else:
            self._issue(certificate, names).configure_cert(context)
        return context

    @property
    def pem(self) -> str:
        """The authority's certificate, as `Webhook.ca` holds one."""
        return self._trusted.cert_pem.bytes().decode("ascii")

    def client_certificate(
        self, *, not_before: datetime.datetime | None = None, not_after: datetime.datetime | None = None
    ) -> str:
        """Return key and certificate of a client, in PEM."""
        leaf = self._trusted.issue_cert("sender.example.com", not_before=not_before, not_after=not_after)
        return leaf.private_key_and_cert_chain_pem.bytes().decode("ascii")

    def _issue(self, certificate: Certificate, names: tuple[str, ...]) -> trustme.LeafCert:
        if certificate is Certificate.EXPIRED:
            return self._trusted.issue_cert(*names, not_before=_LONG_AGO, not_after=_LESS_LONG_AGO)
        if certificate is Certificate.NOT_YET_VALID:
            return self._trusted.issue_cert(*names, not_before=_FAR_AWAY, not_after=_FARTHER_AWAY)
        if certificate is Certificate.WRONG_NAME:
            return self._trusted.issue_cert(_WRONG_NAME)
        if certificate is Certificate.UNTRUSTED:
            return trustme.CA().issue_cert(*names)
        return self._trusted.issue_cert(*names)


def _load_self_signed(context: ssl.SSLContext, names: tuple[str, ...]) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "self-signed")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_LONG_AGO)
        .not_valid_after(_FAR_AWAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with trustme.Blob(key_pem + pem).tempfile() as path:
        context.load_cert_chain(path)
