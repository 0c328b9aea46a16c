from __future__ import annotations

import base64

import pytest

from pggit_reactor.core.secret import Secret
from pggit_reactor.db.webhooks import headers_place, secret_place, url_place
from pggit_reactor.security.keyring import Keyring
from pggit_reactor.security.sealing import Sealer

SECRET = "whsec_" + base64.b64encode(bytes(range(24))).decode()


@pytest.fixture
def sealer(commands) -> Sealer:
    return Sealer(Keyring.parse(Secret(commands.environ["PGGIT_REACTOR_MASTER_KEY"])))


def audited(database, operation: str):
    query = "SELECT webhook_id, user_id, details FROM pggit.webhook_audit_log WHERE operation = %s ORDER BY audit_id"
    return database.execute(query, (operation,)).fetchall()


def count(database, table: str) -> int:
    return database.execute(f"SELECT count(*) FROM pggit.{table}").fetchone()[0]


def test_the_last_word_is_the_id(commands, database, hook) -> None:
    added = commands.ok("webhook", "add", hook)

    assert database.execute("SELECT webhook_id FROM pggit.webhook").fetchall() == [(int(added.last_word),)]


def test_url_and_secret_are_sealed_for_their_rows(commands, database, sealer, hook) -> None:
    added = commands.ok("webhook", "add", hook, "--json").json

    webhook_id = added["webhook_id"]
    row = database.execute("SELECT sealed_url, url_origin, name FROM pggit.webhook").fetchone()
    assert sealer.open(bytes(row[0]), place=url_place(webhook_id)) == hook.encode()
    assert row[1:] == ("https://203.0.113.9", f"webhook-{webhook_id}")
    (sealed,) = database.execute("SELECT sealed_secret FROM pggit.webhook_secret").fetchone()
    assert sealer.open(bytes(sealed), place=secret_place(webhook_id, 1)) == added["secret"].encode()


def test_a_secret_that_it_makes_is_printed_once_and_one_that_is_given_never(commands, hook, tmp_path) -> None:
    made = commands.ok("webhook", "add", hook)
    (tmp_path / "secret").write_text(SECRET + "\n")
    (tmp_path / "secret").chmod(0o600)
    given = commands.ok("webhook", "add", hook, "--secret-file", "secret")

    assert made.out.count("whsec_") == 1
    assert SECRET not in given.out + given.err


def test_the_secret_may_come_from_standard_input(commands, database, sealer, hook) -> None:
    added = commands.ok("webhook", "add", hook, "--secret-file", "-", stdin=SECRET.encode() + b"\n")

    (sealed,) = database.execute("SELECT sealed_secret FROM pggit.webhook_secret").fetchone()
    assert sealer.open(bytes(sealed), place=secret_place(int(added.last_word), 1)) == SECRET.encode()


@pytest.mark.parametrize(
    "secret", [b"", b"short-and-guessable", b"whsec_???", b"\xff" * 32, b"a\nb" * 20, b"x" * 5000]
)
def test_a_secret_that_cannot_sign_is_a_usage_error_and_not_shown(commands, database, hook, secret) -> None:
    refused = commands("webhook", "add", hook, "--secret-file", "-", stdin=secret)

    assert refused.status == 2
    assert refused.err.count("\n") == 1
    assert not secret or secret.decode("latin-1") not in refused.err
    assert count(database, "webhook") == 0


def test_a_secret_file_that_everybody_reads_is_warned_of(commands, hook, tmp_path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "secret").chmod(0o644)

    assert "readable by everybody" in commands.ok("webhook", "add", hook, "--secret-file", "secret").err


def test_an_explicit_id_adopts_deliveries_that_wait(commands, database, hook, enqueued) -> None:
    enqueued(4711)
    database.execute("INSERT INTO pggit.webhook_limit (webhook_id, unknown_since) VALUES (4711, now())")

    added = commands.ok("webhook", "add", hook, "--id", "4711")

    assert added.last_word == "4711"
    assert database.execute("SELECT unknown_since FROM pggit.webhook_limit").fetchall() == [(None,)]


def test_a_new_id_is_one_that_no_delivery_waits_for(commands, hook, enqueued) -> None:
    enqueued(1)
    enqueued(2)

    assert commands.ok("webhook", "add", hook).last_word == "3"


@pytest.mark.parametrize("webhook_id", ["-9223372036854775808", "9223372036854775807", "0"])
def test_any_bigint_is_an_id(commands, hook, webhook_id) -> None:
    assert commands.ok("webhook", "add", hook, "--id", webhook_id).last_word == webhook_id


def test_an_id_beyond_bigint_is_a_usage_error(commands, hook) -> None:
    assert commands("webhook", "add", hook, "--id", "9223372036854775808").status == 2


@pytest.mark.parametrize(
    "url",
    ["https://127.0.0.1/x?s3cret", "http://203.0.113.9/s3cret", "https://169.254.169.254/s3cret", "s3cret",
     "https://user:s3cret@203.0.113.9/"],
)  # fmt: skip
def test_a_url_that_policy_refuses_is_exit_3_with_a_reason_and_leaves_nothing(
    commands, database, url
) -> None:
    refused = commands("webhook", "add", url, EGRESS_UNSAFE_ALLOW="203.0.113.0/24:*")

    assert refused.status == 3
    assert refused.err.startswith("error: ")
    assert refused.err.count("\n") == 1
    assert "s3cret" not in refused.err
    assert count(database, "webhook") == count(database, "webhook_audit_log") == 0


def test_a_name_that_does_not_resolve_is_registered_with_a_warning(commands, database) -> None:
    added = commands.ok("webhook", "add", "https://no-such-name.example.com/x")

    assert "warning: no-such-name.example.com" in added.err
    assert count(database, "webhook") == 1


def test_require_dns_refuses_a_name_that_does_not_resolve(commands, database) -> None:
    refused = commands("webhook", "add", "https://no-such-name.example.com/x", "--require-dns")

    assert refused.status == 3
    assert count(database, "webhook") == 0


def test_a_name_is_unique(commands, database, hook) -> None:
    commands.ok("webhook", "add", hook, "--name", "alerts")
    refused = commands("webhook", "add", hook, "--name", "alerts")

    assert (refused.status, refused.out) == (2, "")
    assert "'alerts'" in refused.err
    assert count(database, "webhook") == count(database, "webhook_secret") == 1


def test_an_id_is_unique(commands, hook) -> None:
    commands.ok("webhook", "add", hook, "--id", "7")
    refused = commands("webhook", "add", hook, "--id", "7")

    assert refused.status == 2
    assert "the id 7" in refused.err


@pytest.mark.parametrize("name", ["", "7", "-7", "a\nb", "x" * 256, "  "])
def test_what_could_be_an_id_or_cannot_be_shown_is_no_name(commands, hook, name) -> None:
    assert commands("webhook", "add", hook, "--name", name).status == 2


def test_options_and_words_set_columns(commands, database, sealer, hook) -> None:
    words = ["attempt_timeout=1500ms", "max_attempts=7", "give_up_after=2d", "max_body_bytes=4096",
             "signature_scope=body-only", "ordering=webhook", "header.X-Team=db", "label.team=db",
             'labels={"tier": "1"}']  # fmt: skip
    added = commands.ok("webhook", "add", hook, "--concurrency", "3", "--rate", "2.5", "--burst", "9", *words)

    row = database.execute(
        "SELECT concurrency, rate_per_s, burst, attempt_timeout, max_attempts, give_up_after, max_body_bytes,"
        " signature_scope, ordering, labels FROM pggit.webhook"
    ).fetchone()
    assert [str(value) for value in row[:9]] == [
        "3", "2.5", "9", "0:00:01.500000", "7", "2 days, 0:00:00", "4096", "body-only", "webhook",
    ]  # fmt: skip
    assert row[9] == {"team": "db", "tier": "1"}
    (sealed,) = database.execute("SELECT sealed_headers FROM pggit.webhook").fetchone()
    assert sealer.open(bytes(sealed), place=headers_place(int(added.last_word))) == b'{"X-Team": "db"}'


def test_without_words_the_columns_have_the_schemas_defaults(commands, database, hook) -> None:
    commands.ok("webhook", "add", hook)
    columns = ["concurrency", "rate_per_s", "burst", "attempt_timeout", "max_attempts", "give_up_after",
               "max_body_bytes", "signature_scope", "ordering", "labels", "weight", "status_policy"]  # fmt: skip
    database.execute(
        "INSERT INTO pggit.webhook (webhook_id, name, sealed_url, url_origin) VALUES (-1, 'plain', '', '')"
    )

    rows = database.execute(f"SELECT DISTINCT {', '.join(columns)} FROM pggit.webhook").fetchall()
    assert len(rows) == 1


def test_rate_and_burst_are_those_of_the_command(commands, database, hook) -> None:
    commands.ok("webhook", "add", hook, "--rate", "2.5", "--burst", "7")

    assert database.execute("SELECT rate_per_s::float8, burst FROM pggit.webhook").fetchall() == [(2.5, 7)]


def test_a_rate_that_is_not_given_is_the_settings(commands, database, hook) -> None:
    commands.ok("webhook", "add", hook, "--name", "setting", DELIVERY_RATE_PER_S="7")
    commands.ok("webhook", "add", hook, "--name", "given", "--rate", "3", DELIVERY_RATE_PER_S="7")

    rates = database.execute("SELECT name, rate_per_s::float8 FROM pggit.webhook ORDER BY name").fetchall()
    assert rates == [("given", 3.0), ("setting", 7.0)]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["concurency=3"], "did you mean concurrency?"),
        (["concurrency"], "not KEY=VALUE"),
        (["concurrency=0"], "1 to 256"),
        (["concurrency=٣"], "1 to 256"),
        (["concurrency=3", "concurrency=4"], "twice"),
        (["attempt_timeout=21s"], "100ms to 20s"),
        (["rate=nan"], "attempts a second"),
        (["header.Host=x"], "Host"),
        (["header.X-Evil=a\r\nb: c"], "control character"),
        (["labels=[1]"], "JSON"),
        (['labels={"a": 1}'], "label 'a'"),
        (["state=paused"], "there is no key 'state'"),
    ],
)
def test_a_wrong_word_is_a_usage_error_that_says_what_is_right(commands, database, hook, words, hint) -> None:
    refused = commands("webhook", "add", hook, *words)

    assert refused.status == 2
    assert hint in refused.err
    assert count(database, "webhook") == 0


def test_the_change_and_its_audit_rows_are_one_transaction(commands, database, hook) -> None:
    database.execute("ALTER TABLE pggit.webhook_audit_log ADD CHECK (operation <> 'secret_added') NOT VALID")
    refused = commands("webhook", "add", hook)

    assert refused.status == 1
    assert count(database, "webhook") == count(database, "webhook_secret") == 0
    assert audited(database, "webhook_added") == []


def test_who_did_it_is_audited_without_any_secret(commands, database, hook) -> None:
    added = commands.ok(
        "--as", "deploy bot", "webhook", "add", hook, "header.Authorization=Bearer s3cret", "--json"
    ).json

    ((webhook_id, user, details),) = audited(database, "webhook_added")
    assert (webhook_id, user) == (added["webhook_id"], "deploy bot")
    assert details["url_origin"] == "https://203.0.113.9"
    assert details["headers"] == ["Authorization"]
    text = str(database.execute("SELECT * FROM pggit.webhook_audit_log").fetchall())
    assert not [word for word in ("s3cret", "tok3n", added["secret"]) if word in text]


def test_the_first_use_of_a_key_registers_it(commands, database, hook) -> None:
    commands.ok("webhook", "add", hook)
    commands.ok("webhook", "add", hook)

    assert database.execute("SELECT key_id FROM pggit.key_check").fetchall() == [("test",)]
    assert [row[2]["key_id"] for row in audited(database, "key_added")] == ["test"]


def test_a_wrong_key_of_the_right_id_is_refused_by_its_id(commands, database, hook, other_key) -> None:
    commands.ok("webhook", "add", hook)
    refused = commands("webhook", "add", hook, MASTER_KEY=other_key)

    assert refused.status == 2
    assert "'test'" in refused.err
    assert count(database, "webhook") == 1


def test_a_ring_that_lacks_a_key_in_use_is_refused_by_its_id(commands, hook, other_key) -> None:
    commands.ok("webhook", "add", hook)
    refused = commands("webhook", "add", hook, MASTER_KEY=other_key.replace("test:", "new:"))

    assert refused.status == 2
    assert "'test' is missing" in refused.err


def test_no_key_at_all_is_a_configuration_error(commands, hook) -> None:
    refused = commands("webhook", "add", hook, MASTER_KEY=None)

    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "key new" in refused.err
