"""Sealing holds for any text, any place and any damage."""

import attrs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pggit_reactor.core.secret import Secret
from pggit_reactor.errors import KeyringError, SealError
from pggit_reactor.security.keyring import Keyring, new_key_line
from pggit_reactor.security.sealing import Place, Sealer, sealed_key_id

raw_keys = st.binary(min_size=32, max_size=32)
key_ids = st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,31}", fullmatch=True)
names = st.text(alphabet=st.characters(codec="utf-8"), max_size=20)
places = st.builds(Place, schema=names, table=names, column=names, row=names)
plains = st.binary(max_size=300)


@st.composite
def sealers(draw: st.DrawFn) -> Sealer:
    ids = draw(st.lists(key_ids, min_size=1, max_size=4, unique=True))
    return Sealer(Keyring.parse(Secret("\n".join(new_key_line(key_id, draw(raw_keys)) for key_id in ids))))


@given(sealer=sealers(), plain=plains, place=places)
def test_what_was_sealed_opens_again(sealer, plain, place):
    sealed = sealer.seal(plain, place=place)

    assert sealer.open(sealed, place=place) == plain
    assert sealed_key_id(sealed) == sealer.keyring.active_id


@given(sealer=sealers(), plain=plains, place=places, data=st.data())
def test_one_altered_octet_anywhere_and_it_does_not_open(sealer, plain, place, data):
    sealed = bytearray(sealer.seal(plain, place=place))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))

    with pytest.raises(SealError) as caught:
        sealer.open(bytes(sealed), place=place)

    assert len(str(caught.value)) < 1000


@given(sealer=sealers(), plain=plains, place=places, data=st.data())
def test_cut_short_or_lengthened_it_does_not_open(sealer, plain, place, data):
    sealed = sealer.seal(plain, place=place)
    damaged = data.draw(
        st.one_of(
            st.integers(0, len(sealed) - 1).map(lambda end: sealed[:end]),
            st.binary(min_size=1, max_size=40).map(lambda more: sealed + more),
        )
    )

    with pytest.raises(SealError):
        sealer.open(damaged, place=place)


@given(
    sealer=sealers(),
    garbage=st.one_of(st.binary(max_size=100), st.binary(max_size=100).map(lambda b: b"\1" + b)),
)
def test_garbage_is_a_seal_error_and_nothing_else(sealer, garbage):
    place = Place(schema="pggit", table="webhook", column="sealed_url", row="1")

    with pytest.raises(SealError):
        sealer.open(garbage, place=place)


@given(sealer=sealers(), plain=plains, place=places, other=places)
def test_in_another_place_it_does_not_open(sealer, plain, place, other):
    assume(place != other)
    sealed = sealer.seal(plain, place=place)

    with pytest.raises(SealError):
        sealer.open(sealed, place=other)


@given(sealer=sealers(), plain=plains, place=places, shift=st.integers(1, 20))
def test_octets_that_wander_from_one_name_to_the_next_make_another_place(sealer, plain, place, shift):
    whole = place.schema + place.table
    schema_length = shift % (len(whole) + 1)
    assume(schema_length != len(place.schema))
    other = attrs.evolve(place, schema=whole[:schema_length], table=whole[schema_length:])
    sealed = sealer.seal(plain, place=place)

    with pytest.raises(SealError):
        sealer.open(sealed, place=other)


@given(key_id=key_ids, right=raw_keys, wrong=raw_keys, plain=plains, place=places)
def test_another_key_opens_nothing_and_fails_the_check(key_id, right, wrong, plain, place):
    assume(right != wrong)
    one = Sealer(Keyring.parse(Secret(new_key_line(key_id, right))))
    other = Sealer(Keyring.parse(Secret(new_key_line(key_id, wrong))))

    assert not other.keyring.verify_check(key_id, one.keyring.check_value(key_id))
    with pytest.raises(SealError):
        other.open(one.seal(plain, place=place), place=place)


@given(sealer=sealers(), plain=st.binary(min_size=8, max_size=300))
def test_the_plain_text_is_neither_in_the_sealed_value_nor_in_an_error(sealer, plain):
    place = Place(schema="pggit", table="webhook", column="sealed_url", row="1")
    sealed = sealer.seal(plain, place=place)

    with pytest.raises(SealError) as caught:
        sealer.open(sealed[:-1], place=place)

    head = 3 + len(sealer.keyring.active_id)
    assert plain not in sealed[head:]
    assert repr(plain)[2:-1] not in str(caught.value)


@given(text=st.text(max_size=200))
def test_any_text_is_a_key_ring_or_a_keyring_error(text):
    try:
        ring = Keyring.parse(Secret(text))
    except KeyringError as exc:
        assert exc.__cause__ is None  # noqa: PT017  # both outcomes are right, so pytest.raises does not fit
    else:
        assert ring.active_id in ring.ids


@given(ids=st.lists(key_ids, min_size=1, max_size=8, unique=True), keys=st.data())
def test_lines_that_were_made_are_read_back_in_order(ids, keys):
    lines = [new_key_line(key_id, keys.draw(raw_keys)) for key_id in ids]

    assert Keyring.parse(Secret(keys.draw(st.sampled_from("\n,")).join(lines))).ids == tuple(ids)
