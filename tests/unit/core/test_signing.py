"""Signatures against known answers, against another's code, and at their edges."""

import base64
import hashlib
import json
import subprocess
import time
from datetime import UTC, datetime

import pytest
import standardwebhooks
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pggit_reactor.core.model import SignatureAlgorithm, SignatureScope
from pggit_reactor.core.signing import SIGNATURE_CHARS_MAX, new_secret, secret_key, sign, verify
from pggit_reactor.core.signing_keys import algorithm_of, new_private_key, public_key_of
from pggit_reactor.errors import ConfigurationError, VerificationError

# The example of the Standard Webhooks specification, whose answer other implementations test with too.
SPEC_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SPEC_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
SPEC_TIMESTAMP = 1_614_265_330
SPEC_BODY = b'{"test": 2432232314}'
SPEC_SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

UID = "00000000-0000-8000-8400-000000000000"
PLAIN_SECRET = "correct horse battery staple"
OTHER_SECRET = new_secret(bytes(range(32)))


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    """RFC 2104 by hand, so that the answers do not come from the code under test's own library call."""
    padded = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
    inner = hashlib.sha256(bytes(octet ^ 0x36 for octet in padded) + message).digest()
    return hashlib.sha256(bytes(octet ^ 0x5C for octet in padded) + inner).digest()


def test_hmac_by_hand_gives_the_answer_of_rfc_4231():
    assert hmac_sha256(b"Jefe", b"what do ya want for nothing?").hex() == (
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )


def test_the_example_of_the_standard_has_its_answer():
    headers = sign(SPEC_BODY, id=SPEC_ID, timestamp=SPEC_TIMESTAMP, secrets=[SPEC_SECRET])

    assert headers["webhook-id"] == SPEC_ID
    assert headers["webhook-timestamp"] == "1614265330"
    assert headers["webhook-signature"] == SPEC_SIGNATURE


@pytest.mark.parametrize(
    ("secret", "key"),
    [(PLAIN_SECRET, PLAIN_SECRET.encode()), (OTHER_SECRET, bytes(range(32))), ("ü" * 40, "ü".encode() * 40)],
)
def test_both_families_are_hmac_over_id_time_and_body(secret, key):
    body = '{"grüße": 1}'.encode()

    headers = sign(body, id=UID, timestamp=1_700_000_000, secrets=[secret])

    standard = hmac_sha256(key, b"%s.1700000000.%s" % (UID.encode(), body))
    pggit = hmac_sha256(key, b"%s.2023-11-14T22:13:20Z.%s" % (UID.encode(), body))
    assert headers == {
        "webhook-id": UID,
        "webhook-timestamp": "1700000000",
        "webhook-signature": "v1," + base64.b64encode(standard).decode(),
        "X-pgGit-Delivery-ID": UID,
        "X-pgGit-Timestamp": "2023-11-14T22:13:20Z",
        "X-pgGit-Signature": "sha256=" + pggit.hex(),
    }


def test_each_secret_signs_newest_first():
    both = sign(b"{}", id=UID, timestamp=0, secrets=[PLAIN_SECRET, OTHER_SECRET])
    alone = [sign(b"{}", id=UID, timestamp=0, secrets=[secret]) for secret in (PLAIN_SECRET, OTHER_SECRET)]

    for name in ("webhook-signature", "X-pgGit-Signature"):
        assert both[name] == f"{alone[0][name]} {alone[1][name]}"


def test_body_only_is_one_hmac_over_the_body_by_the_oldest_secret():
    headers = sign(
        b"{}", id=UID, timestamp=0, secrets=[OTHER_SECRET, PLAIN_SECRET], scope=SignatureScope.BODY_ONLY
    )

    assert headers["X-pgGit-Signature"] == "sha256=" + hmac_sha256(PLAIN_SECRET.encode(), b"{}").hex()


def test_body_only_alone_does_not_pass_for_full():
    headers = sign(b"{}", id=UID, timestamp=0, secrets=[PLAIN_SECRET], scope=SignatureScope.BODY_ONLY)
    pggit_only = {name: value for name, value in headers.items() if name.startswith("X-")}

    with pytest.raises(VerificationError):
        verify(b"{}", pggit_only, PLAIN_SECRET, now=0)


def test_the_reference_library_verifies_what_we_sign_during_a_rotation_too():
    body = json.dumps({"alert": 1}).encode()
    headers = sign(body, id=UID, timestamp=int(time.time()), secrets=[OTHER_SECRET, SPEC_SECRET])

    for secret in (OTHER_SECRET, SPEC_SECRET):
        assert standardwebhooks.Webhook(secret).verify(body, headers) == {"alert": 1}


def test_we_verify_what_the_reference_library_signs():
    moment = datetime.fromtimestamp(SPEC_TIMESTAMP, UTC)
    signature = standardwebhooks.Webhook(SPEC_SECRET).sign(
        msg_id=SPEC_ID, timestamp=moment, data=SPEC_BODY.decode()
    )
    headers = {
        "Webhook-Id": SPEC_ID,
        "Webhook-Timestamp": str(SPEC_TIMESTAMP),
        "Webhook-Signature": f"v1a,AAAA {signature}",
    }

    verify(SPEC_BODY, headers, [PLAIN_SECRET, SPEC_SECRET], now=SPEC_TIMESTAMP)


def test_both_read_a_secret_without_its_padding_alike():
    unpadded = OTHER_SECRET.rstrip("=")
    assert unpadded != OTHER_SECRET
    headers = sign(b"{}", id=UID, timestamp=int(time.time()), secrets=[unpadded])

    assert standardwebhooks.Webhook(unpadded).verify(b"{}", headers) == {}


@pytest.mark.parametrize(
    "text",
    [
        "short",
        "a" * 23,
        "whsec_",
        "whsec_AAAA",
        "whsec_" + "A" * 31,
        "whsec_" + "!" * 40,
        "whsec_" + "-_" * 20,
    ],
)
def test_a_secret_that_cannot_sign_is_refused_and_not_shown(text):
    with pytest.raises(ConfigurationError) as caught:
        secret_key(text)

    assert text.removeprefix("whsec_") == "" or text not in str(caught.value)


@pytest.mark.parametrize("text", ["\ud800" * 24, "whsec_" + "é" * 40])
def test_a_secret_of_strange_characters_is_a_configuration_error(text):
    with pytest.raises(ConfigurationError):
        secret_key(text)


def test_no_traceback_of_a_bad_secret_holds_it():
    with pytest.raises(ConfigurationError) as caught:
        secret_key("whsec_hunter2-hunter2-hunter2-hunter2")

    assert caught.value.__suppress_context__


@pytest.mark.parametrize("secrets", [[], ()])
def test_no_secret_at_all_is_a_configuration_error_on_both_sides(secrets):
    with pytest.raises(ConfigurationError, match="at least one"):
        sign(b"{}", id=UID, timestamp=0, secrets=secrets)
    with pytest.raises(ConfigurationError, match="at least one"):
        verify(b"{}", {}, secrets, now=0)


@pytest.mark.parametrize("message_id", ["", "a.b", "a b", "a\n", "é", "x" * 257])
def test_an_id_that_could_be_read_two_ways_is_not_signed(message_id):
    with pytest.raises(ValueError, match="id"):
        sign(b"{}", id=message_id, timestamp=0, secrets=[PLAIN_SECRET])


def test_an_id_with_a_full_stop_does_not_verify_though_its_signature_is_right():
    """Else "a" at 1 with the body "2.x" could be sent again as "a.1" at 2 with the body "x"."""
    genuine = sign(b"2.x", id="a", timestamp=1, secrets=[PLAIN_SECRET])
    forged = {
        "webhook-id": "a.1",
        "webhook-timestamp": "2",
        "webhook-signature": genuine["webhook-signature"],
    }

    with pytest.raises(VerificationError, match="full stop"):
        verify(b"x", forged, PLAIN_SECRET, now=2)


@pytest.mark.parametrize("timestamp", [-1, 253_402_300_800])
def test_a_time_that_iso_8601_does_not_have_is_not_signed(timestamp):
    with pytest.raises(ValueError, match="timestamp"):
        sign(b"{}", id=UID, timestamp=timestamp, secrets=[PLAIN_SECRET])


def test_the_last_second_that_can_be_signed_verifies():
    headers = sign(b"{}", id=UID, timestamp=253_402_300_799, secrets=[PLAIN_SECRET])

    assert headers["X-pgGit-Timestamp"] == "9999-12-31T23:59:59Z"
    verify(b"{}", headers, PLAIN_SECRET, now=253_402_300_799)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("webhook-timestamp", ""),
        ("webhook-timestamp", "-1"),
        ("webhook-timestamp", "1700000000.0"),
        ("webhook-timestamp", "1.7e9"),
        ("webhook-timestamp", "1_700_000_000"),
        ("webhook-timestamp", "１７０００００００"),
        ("webhook-timestamp", "9" * 5000),
        ("X-pgGit-Timestamp", "2023-11-14T22:13:20"),
        ("X-pgGit-Timestamp", "2023-11-14T22:13:20+00:00"),
        ("X-pgGit-Timestamp", "2023-11-14 22:13:20Z"),
        ("X-pgGit-Timestamp", "2023-11-14T22:13:20.0Z"),
        ("X-pgGit-Timestamp", "2023-02-30T22:13:20Z"),
        ("X-pgGit-Timestamp", "1700000000"),
    ],
)
def test_a_malformed_timestamp_is_refused(name, value):
    headers = sign(b"{}", id=UID, timestamp=1_700_000_000, secrets=[PLAIN_SECRET])

    with pytest.raises(VerificationError, match="malformed"):
        verify(b"{}", headers | {name: value}, PLAIN_SECRET, now=1_700_000_000)


def test_white_space_around_a_value_is_the_transports_and_ignored():
    headers = sign(b"{}", id=UID, timestamp=0, secrets=[PLAIN_SECRET])

    verify(b"{}", {name: f" {value}\t" for name, value in headers.items()}, PLAIN_SECRET, now=0)


def test_a_header_twice_in_different_case_is_refused():
    headers = sign(b"{}", id=UID, timestamp=0, secrets=[PLAIN_SECRET])

    with pytest.raises(VerificationError, match="twice"):
        verify(b"{}", headers | {"Webhook-Id": UID}, PLAIN_SECRET, now=0)


def test_an_endless_signature_header_is_refused_unread():
    headers = sign(b"{}", id=UID, timestamp=0, secrets=[PLAIN_SECRET])
    headers["webhook-signature"] = headers["webhook-signature"] + " v1,x" * SIGNATURE_CHARS_MAX

    with pytest.raises(VerificationError, match="more than"):
        verify(b"{}", headers, PLAIN_SECRET, now=0)


def test_a_body_that_was_decoded_is_a_mistake_of_the_caller():
    headers = sign(b"{}", id=UID, timestamp=0, secrets=[PLAIN_SECRET])

    with pytest.raises(TypeError, match="octets as received"):
        verify("{}", headers, PLAIN_SECRET, now=0)


@pytest.mark.parametrize("wrap", [bytearray, memoryview])
def test_any_kind_of_octets_will_do(wrap):
    verify(wrap(b"{}"), sign(b"{}", id=UID, timestamp=0, secrets=[PLAIN_SECRET]), PLAIN_SECRET, now=0)


def test_a_clock_that_is_no_number_verifies_nothing():
    headers = sign(b"{}", id=UID, timestamp=0, secrets=[PLAIN_SECRET])

    with pytest.raises(VerificationError):
        verify(b"{}", headers, PLAIN_SECRET, now=float("nan"))


# ---- Ed25519 ----------------------------------------------------------------------------------------------

# RFC 8032, 7.1, the first test: seed and public key.
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
PRIVATE_KEY = "whsk_" + base64.b64encode(SEED + PUBLIC).decode()
PUBLIC_KEY = "whpk_" + base64.b64encode(PUBLIC).decode()


def test_a_private_key_has_the_public_key_of_rfc_8032():
    assert new_private_key(SEED) == PRIVATE_KEY
    assert public_key_of(PRIVATE_KEY) == PUBLIC_KEY
    assert public_key_of(PRIVATE_KEY.removesuffix("=")) == PUBLIC_KEY
    assert public_key_of("whsk_" + base64.b64encode(SEED).decode()) == PUBLIC_KEY
    assert public_key_of(PLAIN_SECRET) is None
    assert algorithm_of(PRIVATE_KEY) is SignatureAlgorithm.ED25519
    assert algorithm_of(OTHER_SECRET) is SignatureAlgorithm.HMAC_SHA256


def test_an_ed25519_key_alone_signs_in_the_standard_family_only():
    headers = sign(SPEC_BODY, id=SPEC_ID, timestamp=SPEC_TIMESTAMP, secrets=[PRIVATE_KEY])

    assert sorted(headers) == ["webhook-id", "webhook-signature", "webhook-timestamp"]
    scheme, _, text = headers["webhook-signature"].partition(",")
    signed = f"{SPEC_ID}.{SPEC_TIMESTAMP}.".encode() + SPEC_BODY
    Ed25519PublicKey.from_public_bytes(PUBLIC).verify(base64.b64decode(text, validate=True), signed)
    assert scheme == "v1a"
    verify(SPEC_BODY, headers, PUBLIC_KEY, now=SPEC_TIMESTAMP)


def test_openssl_says_that_our_ed25519_signature_is_right(tmp_path):
    headers = sign(SPEC_BODY, id=SPEC_ID, timestamp=SPEC_TIMESTAMP, secrets=[PRIVATE_KEY])
    # RFC 8410: what stands before the 32 octets of an Ed25519 public key in DER.
    (tmp_path / "key").write_bytes(bytes.fromhex("302a300506032b6570032100") + PUBLIC)
    (tmp_path / "signature").write_bytes(base64.b64decode(headers["webhook-signature"].partition(",")[2]))
    (tmp_path / "signed").write_bytes(f"{SPEC_ID}.{SPEC_TIMESTAMP}.".encode() + SPEC_BODY)
    told = ["-pubin", "-keyform", "DER", "-inkey", "key", "-rawin", "-in", "signed", "-sigfile", "signature"]
    done = subprocess.run(
        ["openssl", "pkeyutl", "-verify", *told],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert "Signature Verified Successfully" in done.stdout, done


def test_during_a_change_of_kind_either_key_verifies():
    headers = sign(SPEC_BODY, id=SPEC_ID, timestamp=SPEC_TIMESTAMP, secrets=[PRIVATE_KEY, SPEC_SECRET])

    assert [one[:3] for one in headers["webhook-signature"].split(" ")] == ["v1a", "v1,"]
    assert headers["X-pgGit-Signature"].count("sha256=") == 1
    for secrets in (PUBLIC_KEY, SPEC_SECRET, [OTHER_SECRET, PUBLIC_KEY]):
        verify(SPEC_BODY, headers, secrets, now=SPEC_TIMESTAMP)


@pytest.mark.parametrize(
    "damage",
    [
        lambda headers: headers | {"webhook-id": "other"},
        lambda headers: headers | {"webhook-timestamp": str(SPEC_TIMESTAMP + 1)},
        lambda headers: headers | {"webhook-signature": headers["webhook-signature"].replace("v1a,", "v1,")},
        lambda headers: headers | {"webhook-signature": "v1a,"},
        lambda headers: headers | {"webhook-signature": "v1a,!!!!"},
        lambda headers: headers | {"webhook-signature": headers["webhook-signature"][:-8]},
        lambda headers: headers | {"webhook-signature": "v1a,AAAA " * 8 + headers["webhook-signature"]},
    ],
    ids=["id", "time", "scheme", "empty", "no base64", "short", "hidden behind many"],
)
def test_an_altered_ed25519_request_is_refused(damage):
    headers = sign(SPEC_BODY, id=SPEC_ID, timestamp=SPEC_TIMESTAMP, secrets=[PRIVATE_KEY])
    with pytest.raises(VerificationError):
        verify(SPEC_BODY, damage(headers), PUBLIC_KEY, now=SPEC_TIMESTAMP)


def sign_with(secret: str) -> dict[str, str]:
    return sign(SPEC_BODY, id=SPEC_ID, timestamp=SPEC_TIMESTAMP, secrets=[secret])


def verify_with(secret: str) -> None:
    verify(SPEC_BODY, sign_with(PLAIN_SECRET), secret, now=SPEC_TIMESTAMP)


@pytest.mark.parametrize(
    ("use", "key", "said"),
    [
        (sign_with, PUBLIC_KEY, "signs nothing"),
        (sign_with, "whsk_AAAA", "seed"),
        (sign_with, "whsk_!", "not base64"),
        (sign_with, "whsk_" + base64.b64encode(SEED + SEED).decode(), "its public key"),
        (verify_with, PRIVATE_KEY, "the sender's alone"),
        (verify_with, "whpk_AAAA", "it has 3"),
    ],
)
def test_a_key_for_the_wrong_side_or_of_another_form_is_refused(use, key, said):
    with pytest.raises(ConfigurationError, match=said) as raised:
        use(key)

    assert key[5:] not in str(raised.value)


def test_a_public_key_verifies_nothing_of_the_other_family():
    headers = sign(SPEC_BODY, id=SPEC_ID, timestamp=SPEC_TIMESTAMP, secrets=[SPEC_SECRET])
    pggit = {name: value for name, value in headers.items() if name.startswith("X-")}
    with pytest.raises(VerificationError, match="no signature is right"):
        verify(SPEC_BODY, pggit, PUBLIC_KEY, now=SPEC_TIMESTAMP)
