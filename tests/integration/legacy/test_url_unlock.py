"""`get_webhook_decrypted` opens URLs in unlocked sessions: the same as `cryptography`'s AESGCM, and nothing else."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator

import psycopg
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from pggit_reactor.core.secret import Secret
from pggit_reactor.db.webhooks import url_place
from pggit_reactor.security.keyring import Keyring
from pggit_reactor.security.sealing import Place, Sealer
from pggit_reactor.testing import strategies as our

RAW = Keyring.parse(Secret(f"k1:base64:{base64.b64encode(bytes(range(32))).decode()}"))
OTHER = Keyring.parse(Secret(f"k1:base64:{base64.b64encode(bytes(range(1, 33))).decode()}"))
URL = "https://hooks.example/services/tok3n"
CANNOT = psycopg.errors.ObjectNotInPrerequisiteState

urls = st.one_of(
    our.public_urls(),
    st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=60),
    st.integers(1, 2000).map(lambda length: ("https://hooks.example/" + "a1-" * 700)[:length]),
)


def url_key(ring: Keyring, purpose: str = url_place(0).purpose, *, salt: bytes | None = None) -> str:
    key = ring.derive(ring.active_id, purpose, salt=salt)
    return f"{ring.active_id}:{base64.b64encode(key).decode()}"


def connected(database) -> psycopg.Connection:
    return psycopg.connect(database.dsn.reveal(), autocommit=True)


@pytest.fixture
def bare(reactor_database) -> Iterator[psycopg.Connection]:
    """A session in a database without pgcrypto."""
    with connected(reactor_database) as session:
        yield session


@pytest.fixture(scope="module")
def crypto(reactor_template) -> Iterator[psycopg.Connection]:
    """A session in a database with pgcrypto, in a schema that nobody would guess."""
    with reactor_template.clone() as database, connected(database) as session:
        add_pgcrypto(session, "of the 'house'")
        yield session


def add_pgcrypto(session: psycopg.Connection, schema: str) -> None:
    if not session.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'pgcrypto'").fetchone():
        pytest.skip("the server has no pgcrypto")
    session.execute(f'CREATE SCHEMA IF NOT EXISTS "{schema}"')
    session.execute(f'CREATE EXTENSION pgcrypto SCHEMA "{schema}"')


def register(session: psycopg.Connection, webhook_id: int, sealed: bytes) -> None:
    session.execute(
        "INSERT INTO pggit.webhook (webhook_id, name, sealed_url, url_origin) VALUES (%s, %s, %s, 'https://x')"
        " ON CONFLICT (webhook_id) DO UPDATE SET sealed_url = excluded.sealed_url",
        (webhook_id, f"w{webhook_id}", sealed),
    )


def seal(webhook_id: int, url: str = URL, ring: Keyring = RAW) -> bytes:
    return Sealer(ring).seal(url.encode(), place=url_place(webhook_id))


def unlock(session: psycopg.Connection, key: str) -> None:
    session.execute("SELECT set_config('pggit.url_key', %s, false)", (key,))


def opened(session: psycopg.Connection, webhook_id: int) -> str | None:
    row = session.execute("SELECT pggit.get_webhook_decrypted(%s)", (webhook_id,)).fetchone()
    assert row is not None
    return row[0]


# ---- the cipher ---------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(webhook_id=our.bigints(), url=urls)
def test_every_url_that_python_seals_sql_opens(crypto, webhook_id, url):
    unlock(crypto, url_key(RAW))
    register(crypto, webhook_id, seal(webhook_id, url))

    assert opened(crypto, webhook_id) == url


@settings(deadline=None, max_examples=60)
@given(
    key=st.binary(min_size=32, max_size=32),
    nonce=st.binary(min_size=12, max_size=12),
    plain=st.binary(max_size=100),
    associated=st.binary(max_size=100),
)
def test_gcm_is_that_of_cryptography_over_any_octets(crypto, key, nonce, plain, associated):
    sealed = AESGCM(key).encrypt(nonce, plain, associated)

    assert crypto.execute(
        "SELECT pggit.open_gcm(%b, %b, %b, %b)", (key, nonce, sealed, associated)
    ).fetchone() == (plain,)


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_one_altered_bit_anywhere_opens_nothing(crypto, data):
    """Head, nonce, text and tag: an altered head is another form, another key or other associated data."""
    unlock(crypto, url_key(RAW))
    sealed = bytearray(seal(1))
    at = data.draw(st.integers(0, len(sealed) - 1))
    sealed[at] ^= 1 << data.draw(st.integers(0, 7))
    register(crypto, 1, bytes(sealed))

    with pytest.raises(CANNOT):
        opened(crypto, 1)


@settings(deadline=None, max_examples=60)
@given(length=st.integers(0, len(seal(1)) - 1), junk=st.binary(max_size=80))
def test_what_was_cut_short_or_is_junk_opens_nothing(crypto, length, junk):
    unlock(crypto, url_key(RAW))
    for sealed in (seal(1)[:length], junk, b"\x01\x02k1" + junk):
        register(crypto, 1, sealed)

        with pytest.raises(CANNOT):
            opened(crypto, 1)


def test_a_value_of_another_row_or_column_opens_nothing(crypto):
    unlock(crypto, url_key(RAW))
    register(crypto, 1, seal(2))
    register(
        crypto,
        3,
        Sealer(RAW).seal(
            URL.encode(), place=Place(schema="pggit", table="webhook", column="sealed_url", row="03")
        ),
    )

    for webhook_id in (1, 3):
        with pytest.raises(CANNOT, match="moved from another row"):
            opened(crypto, webhook_id)


# ---- keys ---------------------------------------------------------------------------------------------------


def test_a_key_of_another_purpose_or_of_another_master_key_opens_nothing(crypto):
    register(crypto, 1, seal(1))
    for key in (
        url_key(OTHER),
        url_key(RAW, "seal-headers"),
        url_key(RAW, "seal-secret"),
        url_key(RAW, "check"),
    ):
        unlock(crypto, key)

        with pytest.raises(CANNOT, match="is of another master key"):
            opened(crypto, 1)


def test_of_several_keys_that_of_the_id_is_taken_and_a_missing_id_is_told(crypto):
    register(crypto, 1, seal(1))
    unlock(crypto, f"k0:{'A' * 43}=,{url_key(OTHER)},{url_key(RAW)},k2:{'B' * 43}=\n")
    assert opened(crypto, 1) == URL
    unlock(crypto, f"k0:{'A' * 43}=,k11:{'B' * 43}=")

    with pytest.raises(CANNOT, match="lacks the key of its master key"):
        opened(crypto, 1)


def test_a_passphrases_key_opens_by_the_salt_that_is_in_the_value(crypto):
    ring = Keyring.parse(Secret("k1:passphrase:correct horse battery staple"))
    sealed = seal(1, ring=ring)
    register(crypto, 1, sealed)
    unlock(crypto, f"{url_key(OTHER)},{url_key(ring)}")

    assert opened(crypto, 1) == URL


@pytest.mark.parametrize(
    "key", ["s3cret", "k1:s3cret", f"K1:{'A' * 43}=", f"k1:{'A' * 43}=,s3cret", f"k1:{'A' * 44}"]
)
def test_what_is_no_key_is_refused_without_quoting_it(bare, key):
    register(bare, 1, seal(1))
    unlock(bare, key)

    with pytest.raises(CANNOT, match="is not what `pggit-reactor key url-key` prints") as refused:
        opened(bare, 1)
    assert not re.search("s3cret|AAAA", repr(refused.value.diag.context) + str(refused.value))


def test_no_error_or_context_holds_the_key_and_no_log_line_the_key_or_the_url(crypto, postgres_server):
    key = url_key(OTHER)
    unlock(crypto, key)
    register(crypto, 1, seal(1))
    crypto.execute("SET log_error_verbosity = verbose")
    with pytest.raises(CANNOT) as refused:
        opened(crypto, 1)
    unlock(crypto, url_key(RAW))
    opened(crypto, 1)

    context = str(refused.value) + str(refused.value.diag.context) + str(refused.value.diag.message_detail)
    log = postgres_server.log_path.read_text(encoding="utf-8", errors="replace")
    assert "does not open" in log
    for secret in (key.partition(":")[2], url_key(RAW).partition(":")[2], "tok3n"):
        assert secret not in context
        assert secret not in log


# ---- locked, unknown, bare ----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "", " "])
def test_a_locked_session_is_told_how_to_unlock(bare, key):
    register(bare, 1, seal(1))
    if key is not None:
        unlock(bare, key)

    with pytest.raises(CANNOT, match=r"set_config\('pggit.url_key', KEY, false\).*key url-key"):
        opened(bare, 1)


def test_an_unknown_id_is_null_locked_or_not(bare):
    assert opened(bare, 4711) is None
    unlock(bare, url_key(RAW))

    assert opened(bare, 4711) is None


def test_without_pgcrypto_it_says_what_to_do(bare):
    """Also where anybody has a function of its name."""
    bare.execute("CREATE FUNCTION public.encrypt(bytea, bytea, text) RETURNS bytea LANGUAGE sql RETURN $1")
    register(bare, 1, seal(1))
    unlock(bare, url_key(RAW))

    with pytest.raises(psycopg.errors.FeatureNotSupported, match="CREATE EXTENSION pgcrypto"):
        opened(bare, 1)


def test_pgcrypto_may_come_go_and_move_while_the_session_lives(bare):
    register(bare, 1, seal(1))
    unlock(bare, url_key(RAW))
    add_pgcrypto(bare, "public")
    assert opened(bare, 1) == URL
    bare.execute("CREATE SCHEMA elsewhere")
    bare.execute("ALTER EXTENSION pgcrypto SET SCHEMA elsewhere")
    assert opened(bare, 1) == URL
    bare.execute("DROP EXTENSION pgcrypto")

    with pytest.raises(psycopg.errors.FeatureNotSupported):
        opened(bare, 1)


# ---- who, and what remains of it ----------------------------------------------------------------------------


def test_each_opening_and_nothing_else_is_audited(bare):
    add_pgcrypto(bare, "public")
    register(bare, 1, seal(1))
    for key in ("", url_key(OTHER)):
        unlock(bare, key)
        with pytest.raises(CANNOT):
            opened(bare, 1)
    unlock(bare, url_key(RAW))
    opened(bare, 4711)
    bare.execute("SELECT pggit.get_webhook_decrypted(1) FROM generate_series(1, 2)")

    rows = bare.execute(
        "SELECT webhook_id, operation, user_id = session_user, details->>'by' FROM pggit.webhook_audit_log"
    ).fetchall()
    assert rows == [(1, "url_decrypted", True, "get_webhook_decrypted")] * 2


def test_an_opening_that_is_rolled_back_stands_in_the_servers_log(bare, postgres_server):
    add_pgcrypto(bare, "public")
    register(bare, 66001, seal(66001))
    unlock(bare, url_key(RAW))
    with bare.transaction(force_rollback=True):
        assert opened(bare, 66001) == URL

    log = postgres_server.log_path.read_text(encoding="utf-8", errors="replace")
    assert "the URL of webhook 66001 was opened by" in log


def test_an_old_worker_without_rights_on_the_registry_may_call_it(reactor_database, bare):
    add_pgcrypto(bare, "hidden")  # no rights on that schema either
    register(bare, 1, seal(1))
    bare.execute("DROP ROLE IF EXISTS old_worker_of_unlock")
    bare.execute("CREATE ROLE old_worker_of_unlock")
    bare.execute("GRANT USAGE ON SCHEMA pggit TO old_worker_of_unlock")
    try:
        with bare.transaction():
            bare.execute("SET LOCAL ROLE old_worker_of_unlock")
            unlock(bare, url_key(RAW))
            assert opened(bare, 1) == URL
            with pytest.raises(psycopg.errors.InsufficientPrivilege), bare.transaction():
                bare.execute("SELECT pggit.open_gcm('', '', '', '')")
            assert bare.execute("SHOW search_path").fetchone() == ('"$user", public',)
    finally:
        bare.execute("DROP OWNED BY old_worker_of_unlock")
        bare.execute("DROP ROLE old_worker_of_unlock")

    assert bare.execute("SELECT count(*) FROM pggit.webhook_audit_log").fetchone() == (1,)


def test_the_key_may_come_with_the_connection(reactor_database, bare):
    add_pgcrypto(bare, "public")
    register(bare, 1, seal(1))
    with psycopg.connect(
        reactor_database.dsn.reveal(), options=f"-c pggit.url_key={url_key(RAW)}"
    ) as session:
        assert opened(session, 1) == URL
