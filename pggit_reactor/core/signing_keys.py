"""The forms that signing secrets come in, and what each signs and verifies with.

- ``whsec_`` and base64: the octets are an HMAC key; so is the UTF-8 of any other text;
- ``whsk_`` and base64: an Ed25519 private key of Standard Webhooks, the seed of 32 octets, with or without the public
  key's 32 behind it;
- ``whpk_`` and base64: its public key, for receivers. It signs nothing.

Ed25519 needs a library that is loaded when the first such key is met, and not before: receivers that verify HMAC
import nothing for it.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import attrs

from pggit_reactor.core.model import SignatureAlgorithm
from pggit_reactor.errors import ConfigurationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SECRET_PREFIX: Final = "whsec_"  # noqa: S105  # a prefix, no secret
PRIVATE_PREFIX: Final = "whsk_"
PUBLIC_PREFIX: Final = "whpk_"
SECRET_OCTETS_MIN: Final = 24
ED25519_OCTETS: Final = 32
HMAC_SCHEME: Final = "v1,"
ED25519_SCHEME: Final = "v1a,"
ED25519_CANDIDATES_MAX: Final = 8
"""Signatures of one request that a public key is tried on: each costs a hash of the body, and a sender makes few."""


def new_secret(octets: bytes) -> str:
    """Return *octets*, which the caller has drawn, as a ``whsec_`` secret."""
    assert len(octets) >= SECRET_OCTETS_MIN
    return SECRET_PREFIX + base64.b64encode(octets).decode("ascii")


def new_private_key(octets: bytes) -> str:
    """Return the Ed25519 key of 32 *octets*, which the caller has drawn, as a ``whsk_`` secret."""
    assert len(octets) == ED25519_OCTETS
    return PRIVATE_PREFIX + base64.b64encode(octets + _public_octets(octets)).decode("ascii")


def algorithm_of(secret: str) -> SignatureAlgorithm:
    """Tell what *secret* signs with; `ConfigurationError` where it cannot sign. The message does not hold it."""
    key = signing_key(secret)
    return SignatureAlgorithm.ED25519 if isinstance(key, PrivateKey) else SignatureAlgorithm.HMAC_SHA256


def public_key_of(secret: str) -> str | None:
    """Return the ``whpk_`` key that verifies what *secret* signs; None for HMAC, which has none."""
    key = signing_key(secret)
    return (
        PUBLIC_PREFIX + base64.b64encode(key.public).decode("ascii") if isinstance(key, PrivateKey) else None
    )


def secret_key(secret: str) -> bytes:
    """Return the HMAC key that *secret* stands for: the octets of a ``whsec_`` secret, else its UTF-8.

    `ConfigurationError` where that is malformed, has fewer than `SECRET_OCTETS_MIN` octets, or is an Ed25519 key; the
    message does not hold the secret.
    """
    if secret.startswith((PRIVATE_PREFIX, PUBLIC_PREFIX)):
        raise ConfigurationError(
            f"a {secret[:4]}_ key is an Ed25519 key, and no secret that both sides share"
        )
    if secret.startswith(SECRET_PREFIX):
        key = _base64_octets(secret[len(SECRET_PREFIX) :], SECRET_PREFIX)
    else:
        try:
            key = secret.encode("utf-8")
        except UnicodeEncodeError:
            # Not chained: the foreign error holds the secret.
            raise ConfigurationError("a signing secret holds characters that UTF-8 does not have") from None
    if len(key) < SECRET_OCTETS_MIN:
        raise ConfigurationError(
            f"a signing secret has {len(key)} octets; it must have {SECRET_OCTETS_MIN} or more"
        )
    return key


@attrs.frozen
class HmacKey:
    """A shared secret: signs and verifies in both families."""

    octets: bytes = attrs.field(repr=False)

    def standard_signature(self, signed: bytes) -> str:
        """Return the signature of Standard Webhooks."""
        return HMAC_SCHEME + base64.b64encode(self.digest(signed)).decode("ascii")

    def digest(self, signed: bytes) -> bytes:
        """Return the bare HMAC-SHA256."""
        return hmac.digest(self.octets, signed, "sha256")

    def verifies(self, signed: bytes, candidates: Sequence[str]) -> bool:
        """Tell, in constant time, whether one of *candidates* is the signature of Standard Webhooks."""
        return any_same(self.standard_signature(signed), candidates)


@attrs.frozen
class PrivateKey:
    """An Ed25519 key that signs."""

    _key: Ed25519PrivateKey = attrs.field(repr=False)

    @property
    def public(self) -> bytes:
        """The octets of its public key."""
        return self._key.public_key().public_bytes_raw()

    def standard_signature(self, signed: bytes) -> str:
        """Return the signature of Standard Webhooks."""
        return ED25519_SCHEME + base64.b64encode(self._key.sign(signed)).decode("ascii")


@attrs.frozen
class PublicKey:
    """An Ed25519 key that verifies. All it looks at is public: no comparison need take constant time."""

    octets: bytes

    def verifies(self, signed: bytes, candidates: Sequence[str]) -> bool:
        """Tell whether one of the first `ED25519_CANDIDATES_MAX` Ed25519 ones of *candidates* is by its private key."""
        ours = [candidate for candidate in candidates if candidate.startswith(ED25519_SCHEME)]
        return any(self._made(candidate, signed) for candidate in ours[:ED25519_CANDIDATES_MAX])

    def _made(self, candidate: str, signed: bytes) -> bool:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            signature = base64.b64decode(candidate[len(ED25519_SCHEME) :], validate=True)
            Ed25519PublicKey.from_public_bytes(self.octets).verify(signature, signed)
        except (
            InvalidSignature,
            ValueError,
        ):  # ValueError: no base64, or a key that is no point of the curve
            return False
        return True


def signing_key(secret: str) -> HmacKey | PrivateKey:
    """Return what signs for *secret*; `ConfigurationError` where it cannot sign. The message does not hold it."""
    if secret.startswith(PUBLIC_PREFIX):
        raise ConfigurationError(
            f"a {PUBLIC_PREFIX} key is a public key: it signs nothing; right is its {PRIVATE_PREFIX} key"
        )
    if not secret.startswith(PRIVATE_PREFIX):
        return HmacKey(secret_key(secret))
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    octets = _base64_octets(secret[len(PRIVATE_PREFIX) :], PRIVATE_PREFIX)
    seed, public = octets[:ED25519_OCTETS], octets[ED25519_OCTETS:]
    if len(seed) != ED25519_OCTETS or public not in {b"", _public_octets(seed)}:
        raise ConfigurationError(
            f"a {PRIVATE_PREFIX} key must hold the {ED25519_OCTETS} octets of an Ed25519 seed, and behind them nothing "
            "or its public key"
        )
    return PrivateKey(Ed25519PrivateKey.from_private_bytes(seed))


def verifying_key(secret: str) -> HmacKey | PublicKey:
    """Return what verifies with *secret*; `ConfigurationError` where it cannot."""
    if secret.startswith(PRIVATE_PREFIX):
        raise ConfigurationError(
            f"a {PRIVATE_PREFIX} key is the sender's alone; a receiver verifies with its {PUBLIC_PREFIX} key"
        )
    if not secret.startswith(PUBLIC_PREFIX):
        return HmacKey(secret_key(secret))
    octets = _base64_octets(secret[len(PUBLIC_PREFIX) :], PUBLIC_PREFIX)
    if len(octets) != ED25519_OCTETS:
        raise ConfigurationError(
            f"a {PUBLIC_PREFIX} key must hold {ED25519_OCTETS} octets; it has {len(octets)}"
        )
    return PublicKey(octets)


def any_same(expected: str, candidates: Sequence[str]) -> bool:
    """Tell whether *expected* is among *candidates*, whatever text came in, in a time that depends on neither."""
    wanted, right = expected.encode("ascii"), False
    for candidate in candidates:
        right |= hmac.compare_digest(wanted, candidate.encode("utf-8", "backslashreplace"))
    return right


def _public_octets(seed: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def _base64_octets(text: str, prefix: str) -> bytes:
    unpadded = text.rstrip("=")
    try:
        # The padding is often lost when a secret is copied; everything else must be right.
        return base64.b64decode(unpadded + "=" * (-len(unpadded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ConfigurationError(
            f"a signing secret starts with {prefix} but is not base64 after it"
        ) from None
