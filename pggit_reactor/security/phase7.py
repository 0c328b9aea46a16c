"""Opens URLs as pgGit's phase 7 kept them: pgcrypto's ``encrypt(url, digest(constant, 'sha256'), 'aes')``.

That is AES-256-CBC with an IV of zeros and PKCS #7 padding, without a tag, under a key that everybody can
compute: the constant stands in a public source. So this hides nothing, and whatever comes out counts as
disclosed; it is here so that an import can seal it anew.
"""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

from pggit_reactor.core.secret import Secret
from pggit_reactor.errors import SealError

URL_OCTETS_MAX: Final = 8192
_BLOCK_OCTETS: Final = 16


def open_phase7_url(encrypted: bytes, constant: str) -> Secret[str]:
    """Return the URL in *encrypted*; `SealError` where *constant* is not the one, or the octets were altered.

    Without a tag that is a guess, though a good one: what opens is well padded, and printable text.
    """
    if not encrypted or len(encrypted) % _BLOCK_OCTETS or len(encrypted) > URL_OCTETS_MAX:
        raise SealError("it is not of the form in which phase 7 kept URLs")
    cipher = Cipher(
        algorithms.AES256(hashlib.sha256(constant.encode()).digest()), modes.CBC(bytes(_BLOCK_OCTETS))
    )
    decryptor = cipher.decryptor()
    unpadder = PKCS7(_BLOCK_OCTETS * 8).unpadder()
    try:
        padded = decryptor.update(encrypted) + decryptor.finalize()
        text = (unpadder.update(padded) + unpadder.finalize()).decode("utf-8")
    except ValueError:  # also UnicodeDecodeError, whose text quotes octets
        text = "\0"
    if not text.isprintable():
        raise SealError("the phase 7 key does not open it")
    return Secret(text)
