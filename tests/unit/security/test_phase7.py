"""URLs as phase 7 kept them."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from pggit_reactor.errors import SealError
from pggit_reactor.security.phase7 import open_phase7_url

# Made by pgcrypto: encrypt(convert_to(..., 'UTF8'), digest('a constant', 'sha256'), 'aes').
KNOWN = {
    "337ea7d0f78e80f031282459ca55f94cab75d03ab26e99feb505e65c945ea8efa0c5c63805047b8ed55bd0bc72dbab0f": (
        "https://hooks.example.com/services/T0/B1/ünï"
    ),
    "e73879936f0eff754bd1d5f853ebb95e": "",
}


@pytest.mark.parametrize("encrypted", KNOWN)
def test_what_pgcrypto_made_opens(encrypted):
    assert open_phase7_url(bytes.fromhex(encrypted), "a constant").reveal() == KNOWN[encrypted]


@given(constant=st.text(max_size=30).filter(lambda text: text != "a constant"))
def test_another_constant_does_not_open_it(constant):
    with pytest.raises(SealError, match="does not open"):
        open_phase7_url(bytes.fromhex(next(iter(KNOWN))), constant)


@pytest.mark.parametrize("encrypted", [b"", b"x", bytes(17), bytes(16 * 1024)])
def test_what_is_of_another_form_is_refused(encrypted):
    with pytest.raises(SealError, match="not of the form"):
        open_phase7_url(encrypted, "a constant")


def test_text_that_cannot_be_a_url_counts_as_not_opened():
    cipher = Cipher(algorithms.AES256(hashlib.sha256(b"c").digest()), modes.CBC(bytes(16))).encryptor()

    with pytest.raises(SealError, match="does not open"):
        open_phase7_url(cipher.update(b"https://a.\n" + bytes([5]) * 5) + cipher.finalize(), "c")
