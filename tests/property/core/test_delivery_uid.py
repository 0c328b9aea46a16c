"""Delivery uids: an inverse, the bits of RFC 9562, and no two alike."""

import uuid

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pggit_reactor.core.delivery_uid import UID_SALT_MASK, delivery_uid, split_delivery_uid
from pggit_reactor.errors import NotFoundError
from pggit_reactor.testing import strategies as our


@given(delivery_id=our.bigints(), uid_salt=our.bigints())
def test_splitting_gives_back_the_id_and_58_bits_of_the_salt(delivery_id, uid_salt):
    uid = delivery_uid(delivery_id, uid_salt)

    assert split_delivery_uid(uid) == (delivery_id, uid_salt & UID_SALT_MASK)
    assert split_delivery_uid(uid.upper()) == split_delivery_uid(uid)


@given(delivery_id=our.bigints(), uid_salt=our.bigints())
def test_the_uuid_module_sees_version_8_of_the_rfc_variant_in_lower_case(delivery_id, uid_salt):
    uid = delivery_uid(delivery_id, uid_salt)

    parsed = uuid.UUID(uid)
    assert str(parsed) == uid
    assert parsed.version == 8
    assert parsed.variant == uuid.RFC_4122


@given(
    first=st.tuples(our.bigints(), st.integers(0, UID_SALT_MASK)),
    second=st.tuples(our.bigints(), st.integers(0, UID_SALT_MASK)),
)
def test_two_deliveries_have_two_uids(first, second):
    assume(first != second)

    assert delivery_uid(*first) != delivery_uid(*second)


@given(text=st.one_of(st.text(max_size=40), st.uuids(version=4).map(str)))
def test_what_is_no_delivery_uid_is_nothings_uid(text):
    with pytest.raises(NotFoundError):
        split_delivery_uid(text)


@pytest.mark.parametrize("wrap", ["{{{}}}", "urn:uuid:{}", " {}", "{}\n"])
def test_other_spellings_of_a_uuid_are_refused(wrap):
    with pytest.raises(NotFoundError):
        split_delivery_uid(wrap.format(delivery_uid(1, 2)))


@pytest.mark.parametrize(
    ("delivery_id", "uid_salt", "uid"),
    [
        (0, 0, "00000000-0000-8000-8000-000000000000"),
        (1, 0, "00000000-0000-8000-8400-000000000000"),
        (16, 0, "00000000-0000-8001-8000-000000000000"),
        (0x10000, 1, "00000000-0001-8000-8000-000000000001"),
        (-1, 0, "ffffffff-ffff-8fff-bc00-000000000000"),
        (0, -1, "00000000-0000-8000-83ff-ffffffffffff"),
        (0x0123456789ABCDEF, 0x2AAAAAAAAAAAAAA, "01234567-89ab-8cde-beaa-aaaaaaaaaaaa"),
        (-(2**63), 2**63 - 1, "80000000-0000-8000-83ff-ffffffffffff"),
    ],
)
def test_known_answers_that_the_sql_function_gives_too(delivery_id, uid_salt, uid):
    assert delivery_uid(delivery_id, uid_salt) == uid
