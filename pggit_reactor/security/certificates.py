"""Reads what people register for TLS: private authorities, and a client certificate with its key.

Everything that would make a delivery fail later is refused here, where somebody can mend it: what is no PEM,
a key that does not fit, an authority that is none, what has expired. What is kept is written anew, in the
order that TLS wants, so that nothing else of the file is sealed along.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NoReturn, TypeVar

import attrs
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from pggit_reactor.core.secret import Secret
from pggit_reactor.errors import ConfigurationError

FILE_OCTETS_MAX: Final = 131_072
CERTIFICATES_MAX: Final = 32

_BLOCK: Final = re.compile(
    rb"-----BEGIN (?P<label>[A-Z0-9 ]{1,40})-----.*?-----END (?P=label)-----", re.DOTALL
)
_T = TypeVar("_T", bound=x509.ExtensionType)
_CERTIFICATE: Final = "CERTIFICATE"
_PRIVATE_KEY: Final = "PRIVATE KEY"
_ENCRYPTED: Final = "ENCRYPTED PRIVATE KEY"
_IGNORED: Final = frozenset({"EC PARAMETERS", "DH PARAMETERS"})
"""What OpenSSL writes beside a key, and the key says itself."""


@attrs.frozen(kw_only=True)
class RegisteredCertificates:
    """Certificates that may be registered: what is sealed, and what people may see of it without a key."""

    pem: Secret[str]
    fingerprints: tuple[str, ...]
    """SHA-256 of each certificate, in lower-case hex; of a client certificate the first is its own."""
    expires_at: datetime
    """When the first of them does."""


def read_authorities(octets: bytes, *, what: str, now: datetime) -> RegisteredCertificates:
    """Return the authorities in *octets* (PEM); `ConfigurationError` begins with *what* and says what is wrong."""
    blocks = _blocks(octets, what)
    if any(label.endswith(_PRIVATE_KEY) for label, _ in blocks):
        _refuse(
            what, "holds a private key; an authority's belongs to nobody here, give its certificate alone"
        )
    certificates = _certificates(blocks, what)
    for number, certificate in enumerate(certificates, start=1):
        name = f"certificate {number}"
        _check_validity(certificate, f"{what}: {name}", now)
        if not _is_authority(certificate, what):
            _refuse(
                what,
                f"{name} is no authority's (its basicConstraints lack CA:TRUE, or its keyUsage keyCertSign); "
                "give the certificate that signed the receiver's, and pins for the receiver's own",
            )
    return _registered(certificates, "")


def read_client_certificate(octets: bytes, *, what: str, now: datetime) -> RegisteredCertificates:
    """Return certificate, key and chain in *octets* (PEM), the certificate first; `ConfigurationError`, as above."""
    blocks = _blocks(octets, what)
    keys = [(label, block) for label, block in blocks if label.endswith(_PRIVATE_KEY)]
    if len(keys) != 1:
        _refuse(what, f"holds {len(keys)} private keys; right is one, in the file of its certificate")
    key = _private_key(*keys[0], what)
    certificates = _certificates([block for block in blocks if not block[0].endswith(_PRIVATE_KEY)], what)
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    own = [certificate for certificate in certificates if _key_of(certificate, what) == public]
    if not own:
        _refuse(what, "the private key is of none of its certificates")
    ordered = [own[0], *(certificate for certificate in certificates if certificate is not own[0])]
    for certificate in ordered:
        of_chain = "" if certificate is own[0] else " of the chain"
        _check_validity(certificate, f"{what}: the certificate{of_chain}", now)
    if not _is_for_clients(own[0], what):
        _refuse(what, "the certificate is not for TLS clients (its extendedKeyUsage lacks clientAuth)")
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return _registered(ordered, key_pem.decode("ascii"))


def _blocks(octets: bytes, what: str) -> list[tuple[str, bytes]]:
    if len(octets) > FILE_OCTETS_MAX:
        _refuse(what, f"has more than {FILE_OCTETS_MAX} octets")
    found = [(match["label"].decode("ascii"), match[0]) for match in _BLOCK.finditer(octets)]
    if not found:
        _refuse(what, "is not PEM (-----BEGIN CERTIFICATE-----); `openssl x509 -inform der` converts DER")
    return [(label, block) for label, block in found if label not in _IGNORED]


def _certificates(blocks: Sequence[tuple[str, bytes]], what: str) -> list[x509.Certificate]:
    for label, _ in blocks:
        if label != _CERTIFICATE:
            _refuse(what, f"holds a {label}, which is none that belongs here; right is {_CERTIFICATE}")
    if not 1 <= len(blocks) <= CERTIFICATES_MAX:
        _refuse(what, f"holds {len(blocks)} certificates; right is 1 to {CERTIFICATES_MAX}")
    found: dict[bytes, x509.Certificate] = {}
    for number, (_, block) in enumerate(blocks, start=1):
        try:
            certificate = x509.load_pem_x509_certificate(block)
            found.setdefault(certificate.fingerprint(SHA256()), certificate)
        except (ValueError, UnsupportedAlgorithm):
            _refuse(what, f"certificate {number} is malformed")
    return list(found.values())


def _private_key(label: str, block: bytes, what: str) -> PrivateKeyTypes:
    if label == _ENCRYPTED or b"ENCRYPTED" in block.split(b"\n\n")[0]:
        _refuse(
            what, "its key has a passphrase; give it without (`openssl pkey -in KEY`), for it is sealed here"
        )
    try:
        return load_pem_private_key(block, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Not its text: it may tell of the key.
        raise ConfigurationError(f"{what}: its private key is malformed, or of an unknown kind") from None


def _key_of(certificate: x509.Certificate, what: str) -> bytes:
    try:
        return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        _refuse(what, "a certificate has a key of an unknown kind")


def _check_validity(certificate: x509.Certificate, what: str, now: datetime) -> None:
    if certificate.not_valid_after_utc <= now:
        _refuse(what, f"expired on {_day(certificate.not_valid_after_utc)}")
    if certificate.not_valid_before_utc > now:
        _refuse(what, f"is not valid before {_day(certificate.not_valid_before_utc)}")


def _day(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(sep=" ", timespec="minutes")


def _is_authority(certificate: x509.Certificate, what: str) -> bool:
    extensions = _extensions(certificate, what)
    constraints = _extension(extensions, x509.BasicConstraints)
    usage = _extension(extensions, x509.KeyUsage)
    return constraints is not None and constraints.ca and (usage is None or usage.key_cert_sign)


def _is_for_clients(certificate: x509.Certificate, what: str) -> bool:
    usage = _extension(_extensions(certificate, what), x509.ExtendedKeyUsage)
    right = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
    return usage is None or bool(right & set(usage))


def _extensions(certificate: x509.Certificate, what: str) -> x509.Extensions:
    try:
        return certificate.extensions
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        _refuse(what, "a certificate has extensions that are malformed")


def _extension(extensions: x509.Extensions, kind: type[_T]) -> _T | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _registered(certificates: Sequence[x509.Certificate], key_pem: str) -> RegisteredCertificates:
    pem = "".join(certificate.public_bytes(Encoding.PEM).decode("ascii") for certificate in certificates)
    return RegisteredCertificates(
        pem=Secret(key_pem + pem),
        fingerprints=tuple(certificate.fingerprint(SHA256()).hex() for certificate in certificates),
        expires_at=min(certificate.not_valid_after_utc for certificate in certificates),
    )


def _refuse(what: str, why: str) -> NoReturn:
    raise ConfigurationError(f"{what}{'' if ':' in what else ':'} {why}")
