"""What may be registered for TLS, and a clear word for each file that may not."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from pggit_reactor.delivery.tls import TlsPolicy, check_policy
from pggit_reactor.errors import ConfigurationError
from pggit_reactor.security.certificates import (
    CERTIFICATES_MAX,
    FILE_OCTETS_MAX,
    read_authorities,
    read_client_certificate,
)

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)
CA = trustme.CA()
LEAF = CA.issue_cert("sender.example.com")
KEY = ec.generate_private_key(ec.SECP256R1())


def made(
    *,
    key=KEY,
    before: datetime = NOW - DAY,
    after: datetime = NOW + 10 * DAY,
    extensions: tuple[x509.ExtensionType, ...] = (),
) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "made")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(before)
        .not_valid_after(after)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)


def key_pem(key=KEY, form=PrivateFormat.PKCS8, encryption=None) -> bytes:
    return key.private_bytes(Encoding.PEM, form, encryption or NoEncryption())


def usage(*purposes) -> x509.ExtendedKeyUsage:
    return x509.ExtendedKeyUsage(purposes)


def key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(True, False, False, False, False, signs, False, False, False)


AUTHORITY = (x509.BasicConstraints(ca=True, path_length=None),)


def refused(read, octets: bytes) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read(octets, what="file", now=NOW)
    message = str(caught.value)
    assert message.startswith("file: ")
    return message


def test_authorities_are_kept_with_their_fingerprints_and_the_first_expiry():
    short, long = made(extensions=AUTHORITY), made(extensions=AUTHORITY, after=NOW + 99 * DAY)

    found = read_authorities(b"a comment\n" + long + b"another\n" + short + short, what="ca", now=NOW)

    assert found.pem.reveal().encode() == long + short, "each once, and nothing but certificates"
    assert found.expires_at == NOW + 10 * DAY
    assert found.fingerprints == tuple(
        x509.load_pem_x509_certificate(pem).fingerprint(SHA256()).hex() for pem in (long, short)
    )
    check_policy(TlsPolicy(ca=found.pem))


@pytest.mark.parametrize(
    ("octets", "words"),
    [
        (b"", "not PEM"),
        (b"\x30\x82\x01\x01", "not PEM"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n", "not PEM"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "certificate 1 is malformed"),
        (made(extensions=AUTHORITY) + key_pem(), "holds a private key"),
        (made(), "is no authority's"),
        (made(extensions=(x509.BasicConstraints(ca=False, path_length=None),)), "is no authority's"),
        (made(extensions=(*AUTHORITY, key_usage(signs=False))), "is no authority's"),
        (made(extensions=AUTHORITY, after=NOW), "certificate 1 expired on 2026-06-01 00:00"),
        (made(extensions=AUTHORITY, before=NOW + DAY), "is not valid before 2026-06-02"),
        (made(extensions=AUTHORITY) + made(), "certificate 2 is no authority's"),
        (
            b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
            "holds a CERTIFICATE REQUEST",
        ),
        (made(extensions=AUTHORITY) * (CERTIFICATES_MAX + 1), f"1 to {CERTIFICATES_MAX}"),
        (b" " * (FILE_OCTETS_MAX + 1), "more than"),
    ],
)
def test_what_is_no_file_of_authorities_is_refused_for_its_reason(octets, words):
    assert words in refused(read_authorities, octets)


def test_an_authority_that_may_sign_is_one():
    read_authorities(made(extensions=(*AUTHORITY, key_usage(signs=True))), what="ca", now=NOW)


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
@pytest.mark.parametrize("key_first", [True, False])
def test_a_client_certificate_is_kept_first_with_its_key_whatever_the_order_of_the_file(form, key_first):
    own, chain, parameters = (
        made(after=NOW + 99 * DAY),
        made(key=ec.generate_private_key(ec.SECP256R1())),
        b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n",
    )
    key = parameters + key_pem(form=form)
    octets = key + chain + own if key_first else chain + own + key

    found = read_client_certificate(octets, what="client", now=NOW)

    assert found.pem.reveal().encode() == key_pem() + own + chain
    assert found.fingerprints[0] == x509.load_pem_x509_certificate(own).fingerprint(SHA256()).hex()
    assert found.expires_at == NOW + 10 * DAY
    assert "PRIVATE" not in repr(found)
    check_policy(TlsPolicy(client_certificate=found.pem))


@pytest.mark.parametrize(
    ("octets", "words"),
    [
        (b"", "not PEM"),
        (made(), "holds 0 private keys"),
        (made() + key_pem() * 2, "holds 2 private keys"),
        (key_pem(), "holds 0 certificates"),
        (made() + key_pem(ec.generate_private_key(ec.SECP256R1())), "the private key is of none of its"),
        (made() + key_pem(encryption=BestAvailableEncryption(b"word")), "has a passphrase"),
        (
            made() + key_pem(form=PrivateFormat.TraditionalOpenSSL, encryption=BestAvailableEncryption(b"w")),
            "has a passphrase",
        ),
        (made() + b"-----BEGIN PRIVATE KEY-----\nQUJD\n-----END PRIVATE KEY-----\n", "key is malformed"),
        (made(after=NOW - DAY) + key_pem(), "the certificate expired on 2026-05-31"),
        (made(before=NOW + DAY) + key_pem(), "the certificate is not valid before"),
        (
            made() + made(key=ec.generate_private_key(ec.SECP256R1()), after=NOW - DAY) + key_pem(),
            "the certificate of the chain expired",
        ),
        (made(extensions=(usage(ExtendedKeyUsageOID.SERVER_AUTH),)) + key_pem(), "not for TLS clients"),
    ],
)
def test_what_is_no_client_certificate_is_refused_for_its_reason(octets, words):
    message = refused(read_client_certificate, octets)

    assert words in message
    assert "QUJD" not in message


@pytest.mark.parametrize(
    "purpose", [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]
)
def test_a_certificate_that_is_for_clients_too_is_right(purpose):
    octets = made(extensions=(usage(ExtendedKeyUsageOID.SERVER_AUTH, purpose),)) + key_pem()

    assert read_client_certificate(octets, what="client", now=NOW).fingerprints


def test_what_is_read_works_in_a_handshake_of_python(tmp_path):
    now = datetime.now(UTC)
    found = read_client_certificate(LEAF.private_key_and_cert_chain_pem.bytes(), what="client", now=now)
    path = tmp_path / "client.pem"
    path.write_text(found.pem.reveal())

    ssl.create_default_context().load_cert_chain(path)


def test_a_key_that_openssl_finds_too_weak_is_refused_by_the_check_that_loads_it():
    from cryptography.hazmat.primitives.asymmetric import rsa

    weak = rsa.generate_private_key(65537, 1024)
    found = read_client_certificate(made(key=weak) + key_pem(weak), what="client", now=NOW)

    with pytest.raises(ConfigurationError, match="does not load: EE_KEY_TOO_SMALL"):
        check_policy(TlsPolicy(client_certificate=found.pem))
