"""Signatures: what was signed verifies, and nothing else does."""

import attrs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pggit_reactor.core.model import SignatureScope
from pggit_reactor.core.signing import (
    PGGIT_ID,
    PGGIT_SIGNATURE,
    PGGIT_TIMESTAMP,
    STANDARD_ID,
    STANDARD_SIGNATURE,
    STANDARD_TIMESTAMP,
    sign,
    verify,
)
from pggit_reactor.core.signing_keys import new_private_key, public_key_of
from pggit_reactor.errors import VerificationError
from pggit_reactor.testing import strategies as our

STANDARD = frozenset({STANDARD_ID, STANDARD_TIMESTAMP, STANDARD_SIGNATURE})
PGGIT = frozenset({PGGIT_ID, PGGIT_TIMESTAMP, PGGIT_SIGNATURE})
families = st.sampled_from([STANDARD, PGGIT, STANDARD | PGGIT])
one_family = st.sampled_from([STANDARD, PGGIT])


@attrs.frozen
class Message:
    body: bytes
    id: str
    timestamp: int
    secrets: list[str]

    def headers(self, family=STANDARD | PGGIT, **options):
        signed = sign(self.body, id=self.id, timestamp=self.timestamp, secrets=self.secrets, **options)
        return {name: value for name, value in signed.items() if name in family}


messages = st.builds(
    Message,
    our.bodies(),
    our.message_ids(),
    our.timestamps(),
    st.lists(our.signing_secrets(), min_size=1, max_size=3, unique=True),
)


def refuse(body, headers, secrets, *, now, **options):
    with pytest.raises(VerificationError) as caught:
        verify(body, headers, secrets, now=now, **options)
    return str(caught.value)


@given(message=messages, family=families, data=st.data())
def test_each_valid_secret_verifies_either_family_alone_or_both(message, family, data):
    secret = data.draw(st.sampled_from(message.secrets))
    strangers = data.draw(st.lists(our.signing_secrets(), max_size=2))

    verify(message.body, message.headers(family), secret, now=message.timestamp)
    verify(message.body, message.headers(family), [*strangers, secret], now=message.timestamp)


@given(message=messages, family=families, spell=st.sampled_from([str.lower, str.upper, str.title]))
def test_names_of_headers_may_be_in_any_case_among_others(message, family, spell):
    headers = {spell(name): value for name, value in message.headers(family).items()}

    verify(message.body, {"Host": "example.com", **headers}, message.secrets, now=message.timestamp)


@given(message=messages, family=families, data=st.data())
def test_one_altered_octet_of_the_body_does_not_verify(message, family, data):
    assume(message.body)
    altered = bytearray(message.body)
    altered[data.draw(st.integers(0, len(altered) - 1))] ^= data.draw(st.integers(1, 255))

    refuse(bytes(altered), message.headers(family), message.secrets, now=message.timestamp)


@given(message=messages, family=families, octets=st.binary(min_size=1, max_size=4), at_end=st.booleans())
def test_a_longer_body_does_not_verify(message, family, octets, at_end):
    longer = message.body + octets if at_end else octets + message.body

    refuse(longer, message.headers(family), message.secrets, now=message.timestamp)


@given(message=messages, family=one_family, data=st.data())
def test_one_altered_character_of_any_header_does_not_verify(message, family, data):
    headers = message.headers(family)
    name = data.draw(st.sampled_from(sorted(family)))
    value = headers[name]
    position = data.draw(st.integers(0, len(value) - 1))
    character = data.draw(st.characters(min_codepoint=0x21, max_codepoint=0x7E))
    assume(character != value[position])
    headers[name] = value[:position] + character + value[position + 1 :]
    # Of several signatures one is enough: alter the only one.
    secret = message.secrets[0] if name.endswith("ignature") else message.secrets
    if name.endswith("ignature"):
        headers[name] = headers[name].split(" ")[0]
        assume(position < len(headers[name]))

    refuse(message.body, headers, secret, now=message.timestamp, tolerance_seconds=10**15)


@given(message=messages, family=families, stranger=our.signing_secrets())
def test_another_secret_does_not_verify(message, family, stranger):
    assume(stranger not in message.secrets)

    refuse(message.body, message.headers(family), stranger, now=message.timestamp)


@given(message=messages, family=families, tolerance=st.integers(0, 10_000), late=st.floats(0.01, 1e9))
def test_what_is_older_or_newer_than_the_tolerance_does_not_verify(message, family, tolerance, late):
    headers = message.headers(family)
    early_now, late_now = message.timestamp - tolerance, message.timestamp + tolerance

    verify(message.body, headers, message.secrets, now=early_now, tolerance_seconds=tolerance)
    verify(message.body, headers, message.secrets, now=late_now, tolerance_seconds=tolerance)
    beyond = late_now + late, early_now - late
    assume(beyond[0] > late_now)
    assume(beyond[1] < early_now)
    assert "old" in refuse(message.body, headers, message.secrets, now=beyond[0], tolerance_seconds=tolerance)
    assert "future" in refuse(
        message.body, headers, message.secrets, now=beyond[1], tolerance_seconds=tolerance
    )


@given(message=messages, family=one_family, junk=st.lists(st.text(max_size=20), max_size=4))
def test_unknown_schemes_beside_a_valid_signature_are_ignored(message, family, junk):
    headers = message.headers(family)
    name = next(name for name in headers if name.endswith("ignature"))
    padded = ["v1a,AAAA", "v2,x", "sha512=00", *junk, headers[name], "v1a,", "=", ""]
    headers[name] = " ".join(text.replace("\xa0", "") for text in padded)

    verify(message.body, headers, message.secrets, now=message.timestamp)


@given(message=messages, family=one_family)
def test_unknown_schemes_alone_do_not_verify_even_with_a_right_digest(message, family):
    headers = message.headers(family)
    name = next(name for name in headers if name.endswith("ignature"))
    headers[name] = headers[name].replace("v1,", "v1a,").replace("sha256=", "sha1=")

    assert "no signature is right" in refuse(message.body, headers, message.secrets, now=message.timestamp)


@given(message=messages, missing=st.sampled_from(sorted(STANDARD)), other=st.sampled_from(sorted(PGGIT)))
def test_a_family_with_a_header_missing_is_none(message, missing, other):
    headers = message.headers((STANDARD - {missing}) | (PGGIT - {other}))

    assert "want webhook-id" in refuse(message.body, headers, message.secrets, now=message.timestamp)


@given(message=messages, other_id=our.message_ids(), signed=one_family)
def test_a_second_id_that_differs_is_refused_though_the_other_family_is_right(message, other_id, signed):
    """A receiver who drops repeats by the header that is not covered would take a replay for new."""
    assume(other_id != message.id)
    headers = message.headers(signed) | {(PGGIT_ID if signed == STANDARD else STANDARD_ID): other_id}

    assert "differ" in refuse(message.body, headers, message.secrets, now=message.timestamp)


@given(message=messages, other=our.timestamps(), name=st.sampled_from([PGGIT_TIMESTAMP, STANDARD_TIMESTAMP]))
def test_a_second_timestamp_that_differs_is_refused(message, other, name):
    assume(other != message.timestamp)
    headers = message.headers() | {name: attrs.evolve(message, timestamp=other).headers()[name]}

    assert "differ" in refuse(message.body, headers, message.secrets, now=message.timestamp)


@given(message=messages)
def test_body_only_changes_one_header_and_the_standard_family_still_verifies(message):
    full, body_only = message.headers(), message.headers(scope=SignatureScope.BODY_ONLY)

    assert {name for name in full if full[name] != body_only[name]} == {PGGIT_SIGNATURE}
    verify(message.body, body_only, message.secrets, now=message.timestamp)


@given(
    body=our.bodies(),
    headers=st.dictionaries(st.sampled_from(sorted(STANDARD | PGGIT)), st.text(max_size=80)),
    now=st.floats(),
)
def test_whatever_a_stranger_sends_is_a_verification_error(body, headers, now):
    refuse(body, headers, "a secret of more than 24 octets", now=now)


seeds = st.binary(min_size=32, max_size=32)


@given(body=our.bodies(), id_=our.message_ids(), timestamp=our.timestamps(), seed=seeds, other=seeds)
def test_an_ed25519_key_verifies_with_its_public_key_and_no_other(body, id_, timestamp, seed, other):
    assume(seed != other)
    key, stranger = new_private_key(seed), new_private_key(other)
    headers = sign(body, id=id_, timestamp=timestamp, secrets=[key])

    verify(body, headers, [public_key_of(stranger), public_key_of(key)], now=timestamp)
    refuse(body, headers, public_key_of(stranger), now=timestamp)
    refuse(body + b"!", headers, public_key_of(key), now=timestamp)


@given(message=messages, seed=seeds, data=st.data())
def test_secrets_of_both_kinds_sign_side_by_side_in_their_order(message, seed, data):
    secrets = data.draw(st.permutations([*message.secrets, new_private_key(seed)]))
    headers = sign(message.body, id=message.id, timestamp=message.timestamp, secrets=secrets)

    schemes = [one.partition(",")[0] for one in headers[STANDARD_SIGNATURE].split(" ")]
    assert schemes == ["v1a" if secret.startswith("whsk_") else "v1" for secret in secrets]
    for secret in secrets:
        verify(message.body, headers, public_key_of(secret) or secret, now=message.timestamp)
