"""What is written twice, in SQL and in Python, is the same: extra headers, and the delivery uid with its inverse."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pggit_reactor.core.delivery_uid import UID_SALT_MASK, delivery_uid, split_delivery_uid
from pggit_reactor.core.headers import (
    HEADER_BYTES_MAX,
    HEADER_NAME_CHARS_MAX,
    RESERVED_NAMES,
    RESERVED_PREFIXES,
    parse_extra_headers,
)
from pggit_reactor.errors import BadHeadersError
from pggit_reactor.testing import strategies as our
from pggit_reactor.testing.database import DatabaseTemplate

# What jsonb can hold: everything but U+0000 and lone surrogates.
text = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12)
names = st.one_of(
    text,
    st.from_regex(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,20}", fullmatch=True),
    st.sampled_from(sorted(RESERVED_NAMES)),
    st.sampled_from(sorted(RESERVED_PREFIXES)).flatmap(lambda prefix: text.map(prefix.__add__)),
    st.integers(HEADER_NAME_CHARS_MAX - 1, HEADER_NAME_CHARS_MAX + 1).map("x".__mul__),
).flatmap(lambda name: st.sampled_from([name, name.upper(), name.title(), name.swapcase()]))
values = st.one_of(
    text,
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=12),
    st.text(st.characters(min_codepoint=0x09, max_codepoint=0xFF), max_size=4),
    st.integers(HEADER_BYTES_MAX - 40, HEADER_BYTES_MAX + 40).map("v".__mul__),
    st.none() | st.booleans() | st.integers(-3, 3) | st.lists(st.integers(), max_size=1),
)
headers = st.one_of(
    our.extra_headers(),
    st.dictionaries(names, values, max_size=4),
    st.integers(31, 34).map(lambda count: {f"x-{number}": "v" for number in range(count)}),
    values,
)


@pytest.fixture(scope="module")
def session(reactor_template: DatabaseTemplate) -> Iterator[psycopg.Connection]:
    """A plain session: Hypothesis runs many examples in one test."""
    with (
        reactor_template.clone() as database,
        psycopg.connect(database.dsn.reveal(), autocommit=True) as connection,
    ):
        yield connection


def sql_accepts(session: psycopg.Connection, json_text: str) -> tuple[bool, str]:
    """Return what SQL says, and the text in which a claim would hand these headers to a worker."""
    row = session.execute(
        "SELECT pggit.check_delivery_headers(h) IS NULL, h::text FROM (SELECT %s::jsonb AS h) AS given",
        (json_text,),
    ).fetchone()
    assert row is not None
    return row


def core_accepts(json_text: str) -> bool:
    try:
        parse_extra_headers(json_text)
    except BadHeadersError:
        return False
    return True


@settings(deadline=None)
@given(headers=headers)
def test_what_enqueue_takes_the_worker_sends_and_of_ascii_each_takes_what_the_other_does(session, headers):
    in_sql, stored = sql_accepts(session, json.dumps(headers))
    in_core = core_accepts(stored)

    assert in_core or not in_sql
    # SQL counts the octets of the JSON, which holds more than the fields do.
    if all(character <= "~" for character in stored) and len(stored) <= HEADER_BYTES_MAX:
        assert in_sql == in_core


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES | {prefix + "x" for prefix in RESERVED_PREFIXES}))
def test_every_reserved_name_is_reserved_in_sql_in_any_case(session, name):
    for spelling in (name, name.upper(), name.title()):
        assert not sql_accepts(session, json.dumps({spelling: "x"}))[0]


@pytest.mark.parametrize("names", [["TRAILER"], ["X-PGGIT-DELIVERY-ID"], ["WEBHOOK-ID"], ["X-I", "x-i"]])
def test_a_turkish_database_folds_header_names_as_every_other(postgres_server, reactor_template, names):
    """There lower('I') is a letter that is no i."""
    with psycopg.connect(postgres_server.dsn.reveal(), autocommit=True) as admin:
        if not admin.execute("SELECT 1 FROM pg_collation WHERE collname = 'tr-x-icu'").fetchone():
            pytest.skip("the server was built without ICU")
        admin.execute("DROP DATABASE IF EXISTS turkish")
        admin.execute(
            "CREATE DATABASE turkish TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'tr' LOCALE 'C'"
        )
        with reactor_template.clone() as database, psycopg.connect(database.dsn.reveal()) as migrated:
            row = migrated.execute("SELECT pg_get_functiondef('pggit.check_delivery_headers'::regproc)")
            (definition,) = row.fetchone() or ("",)
    with psycopg.connect(postgres_server.dsn_for("turkish").reveal(), autocommit=True) as session:
        assert session.execute("SELECT lower('I') = 'i'").fetchone() == (False,)
        session.execute("CREATE SCHEMA pggit")
        session.execute(definition.encode())

        assert not sql_accepts(session, json.dumps(dict.fromkeys(names, "x")))[0]


@settings(deadline=None)
@given(pairs=st.lists(st.tuples(our.bigints(), our.bigints()), min_size=1, max_size=50))
def test_the_delivery_uid_and_its_inverse_are_the_same_over_all_bigints(session, pairs):
    rows = session.execute(
        "SELECT u.uid::text, s.delivery_id, s.uid_salt_bits"
        " FROM unnest(%s::bigint[], %s::bigint[]) WITH ORDINALITY AS p (delivery_id, uid_salt, number)"
        " CROSS JOIN LATERAL (SELECT pggit.delivery_uid(p.delivery_id, p.uid_salt) AS uid) AS u"
        " CROSS JOIN LATERAL pggit.split_delivery_uid(u.uid) AS s ORDER BY p.number",
        ([pair[0] for pair in pairs], [pair[1] for pair in pairs]),
    ).fetchall()

    for (delivery_id, uid_salt), (uid, *parts) in zip(pairs, rows, strict=True):
        assert uid == delivery_uid(delivery_id, uid_salt)
        assert tuple(parts) == split_delivery_uid(uid) == (delivery_id, uid_salt & UID_SALT_MASK)
        assert (uuid.UUID(uid).version, uuid.UUID(uid).variant) == (8, uuid.RFC_4122)


@settings(deadline=None)
@given(uid=st.uuids())
def test_a_uid_that_is_none_of_ours_is_split_without_an_error(session, uid):
    """A look-up by it finds nothing, since the salt differs."""
    row = session.execute("SELECT * FROM pggit.split_delivery_uid(%s)", (uid,)).fetchone()

    assert row is not None
    assert 0 <= row[1] <= UID_SALT_MASK


def test_the_uid_of_nothing_is_nothing(session):
    row = session.execute(
        "SELECT pggit.delivery_uid(NULL, 1), pggit.delivery_uid(1, NULL), (pggit.split_delivery_uid(NULL)).delivery_id"
    ).fetchone()

    assert row == (None, None, None)
