"""Sealed values: what they look like, and every way in which they refuse to open."""

import attrs
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pggit_reactor.core.secret import Secret
from pggit_reactor.errors import SealError
from pggit_reactor.security import keyring
from pggit_reactor.security.keyring import Keyring, new_key_line
from pggit_reactor.security.sealing import PLAIN_OCTETS_MAX, Place, Sealer, sealed_key_id

RAW = bytes(range(32))
URL = b"https://hooks.example.com/T000/B000/XXXXXXXX"
PLACE = Place(schema="pggit", table="webhook", column="sealed_url", row="42")


def sealer(*lines: str, salt: bytes = b"s" * 16) -> Sealer:
    text = "\n".join(lines or (new_key_line("k1", RAW),))
    ring = Keyring.parse(Secret(text), random_octets=lambda count: salt[:count])
    return Sealer(ring, random_octets=lambda count: b"nonce-nonce-"[:count])


@pytest.fixture
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "PBKDF2_ROUNDS", 1)


def test_the_layout_is_as_documented_and_opens_with_nothing_but_aes_gcm_and_the_derived_key():
    sealed = sealer().seal(URL, place=PLACE)

    head, nonce, text = sealed[:5], sealed[5:17], sealed[17:]
    assert head == b"\x01\x02k1\x00"
    assert nonce == b"nonce-nonce-"
    place = b"\0\0\0\x05pggit\0\0\0\x07webhook\0\0\0\x0asealed_url\0\0\0\x0242"
    # The key is that of the known answer in test_keyring.py, for the purpose seal-url.
    key = bytes.fromhex("49d86c9af52d3582050443cb81e7d802c4c8f382d81fd4d22d844b88fd78bf87")
    assert AESGCM(key).decrypt(nonce, text, head + place) == URL


def test_a_known_answer_stays_the_same():
    """Values that are in databases must open for ever."""
    sealed = (
        "01026b31006e6f6e63652d6e6f6e63652d83b302d32ca534f2fc22ccc9a9ce48314da988b6f2669e"
        "cdec845c283e604b372de5bcf27c7081f1b3ea4fa6cca8b650c9f4c6fe3d1a918f687f93fb"
    )

    assert sealer().seal(URL, place=PLACE).hex() == sealed
    assert sealer().open(bytes.fromhex(sealed), place=PLACE) == URL


def test_a_value_that_a_passphrase_sealed_opens_by_itself(few_rounds):
    line = "p:passphrase:correct horse battery staple"
    sealed = sealer(line, salt=b"a" * 16).seal(URL, place=PLACE)

    assert sealed[:20] == b"\x01\x01p\x10" + b"a" * 16
    assert sealer(line, salt=b"b" * 16).open(sealed, place=PLACE) == URL


def test_every_sealing_draws_its_own_nonce():
    real = Sealer(Keyring.parse(Secret(new_key_line("k1", RAW))))

    assert real.seal(URL, place=PLACE) != real.seal(URL, place=PLACE)


def test_the_active_key_seals_and_older_ones_still_open():
    old = new_key_line("old", RAW)
    sealed = sealer(old).seal(URL, place=PLACE)
    both = sealer(new_key_line("new", b"n" * 32), old)

    assert both.open(sealed, place=PLACE) == URL
    assert sealed_key_id(sealed) == "old"
    assert sealed_key_id(both.seal(URL, place=PLACE)) == "new"


@pytest.mark.parametrize("field", ["schema", "table", "column", "row"])
def test_a_value_opens_in_its_own_place_only(field):
    sealed = sealer().seal(URL, place=PLACE)

    with pytest.raises(SealError, match="altered, or it was moved from another row"):
        sealer().open(sealed, place=attrs.evolve(PLACE, **{field: "other"}))


def test_two_places_that_read_alike_are_two_places():
    sealed = sealer().seal(URL, place=Place(schema="a", table="bc", column="sealed_url", row="1"))

    with pytest.raises(SealError):
        sealer().open(sealed, place=Place(schema="ab", table="c", column="sealed_url", row="1"))


def test_a_column_has_a_key_of_its_own():
    assert PLACE.purpose == "seal-url"
    assert attrs.evolve(PLACE, column="sealed_client_certificate").purpose == "seal-client-certificate"


def test_another_key_under_the_same_id_does_not_open():
    sealed = sealer().seal(URL, place=PLACE)

    with pytest.raises(
        SealError, match=r"pggit\.webhook\.sealed_url of row 42 does not open with master key 'k1'"
    ):
        sealer(new_key_line("k1", b"x" * 32)).open(sealed, place=PLACE)


def test_a_missing_key_is_named():
    sealed = sealer().seal(URL, place=PLACE)

    with pytest.raises(SealError, match="the key ring lacks the master key 'k1'; it has 'k2'"):
        sealer(new_key_line("k2", RAW)).open(sealed, place=PLACE)


def test_a_raw_key_refuses_a_value_that_a_passphrase_sealed(few_rounds):
    sealed = sealer("k1:passphrase:correct horse battery staple").seal(URL, place=PLACE)

    with pytest.raises(SealError, match="salt of 16 octets is not its own"):
        sealer().open(sealed, place=PLACE)


def test_another_format_is_refused():
    with pytest.raises(SealError, match="not of a format that this version knows; right is format 1"):
        sealer().open(b"\x02" + sealer().seal(URL, place=PLACE)[1:], place=PLACE)


def test_what_is_too_large_is_refused_before_it_is_sealed():
    with pytest.raises(SealError, match="too many to seal; at most 1048576"):
        sealer().seal(bytes(PLAIN_OCTETS_MAX + 1), place=PLACE)


async def test_a_passphrase_is_derived_in_a_thread_by_the_async_forms(few_rounds):
    line = "p:passphrase:correct horse battery staple"
    first, second = sealer(line, salt=b"a" * 16), sealer(line, salt=b"b" * 16)

    sealed = await first.seal_async(URL, place=PLACE)

    assert not second.is_quick(sealed)
    assert await second.open_async(sealed, place=PLACE) == URL
    assert second.is_quick(sealed)
    assert await second.open_async(sealed, place=PLACE) == URL


async def test_the_async_forms_open_and_refuse_as_the_others_do():
    one = sealer()
    sealed = await one.seal_async(URL, place=PLACE)

    assert one.open(sealed, place=PLACE) == URL
    with pytest.raises(SealError):
        await one.open_async(sealed[:-1], place=PLACE)


def test_nothing_of_a_key_shows_in_the_repr_of_a_sealer():
    assert repr(sealer()) == "Sealer(keyring=<Keyring k1>)"
