from __future__ import annotations

import json

import pytest


@pytest.fixture
def alerts(commands, hook) -> int:
    """A webhook named alerts; its id."""
    return commands.ok("webhook", "add", hook, "--name", "alerts", "--json").json["webhook_id"]


def last_audit(database) -> tuple:
    query = (
        "SELECT operation, webhook_id, details FROM pggit.webhook_audit_log ORDER BY audit_id DESC LIMIT 1"
    )
    return database.execute(query).fetchone()


def shown(commands, *options: str) -> dict:
    return commands.ok("webhook", "show", "alerts", "--json", *options).json


def test_set_changes_what_is_named_and_leaves_the_rest(commands, alerts) -> None:
    before = shown(commands)
    commands.ok("webhook", "set", "alerts", "concurrency=8", "give_up_after=90m")
    after = shown(commands)

    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"concurrency", "give_up_after_seconds", "updated_at"}
    assert (after["concurrency"], after["give_up_after_seconds"]) == (8, 5400)


def test_an_order_is_set_shown_and_audited(commands, alerts, database) -> None:
    commands.ok("webhook", "set", "alerts", "ordering=key")

    assert shown(commands)["ordering"] == "key"
    assert last_audit(database)[2]["ordering"] == {"from": "none", "to": "key"}
    assert commands("webhook", "set", "alerts", "ordering=strict").status == 2


def test_a_change_gives_workers_a_new_revision_and_wakes_them(commands, alerts, database) -> None:
    database.execute("LISTEN pggit_delivery")
    before = database.execute("SELECT revision FROM pggit.webhook").fetchone()
    commands.ok("webhook", "set", str(alerts), "concurrency=8")

    assert database.execute("SELECT revision FROM pggit.webhook").fetchone() > before
    assert [notice.payload for notice in database.notifies(timeout=5, stop_after=1)] == [str(alerts)]


def test_the_audit_row_tells_old_and_new(commands, alerts, database) -> None:
    commands.ok("webhook", "set", "alerts", "concurrency=8", "label.team=db")

    operation, webhook_id, details = last_audit(database)
    assert (operation, webhook_id) == ("webhook_changed", alerts)
    assert details["concurrency"] == {"from": 32, "to": 8}
    assert details["labels"] == {"from": {}, "to": {"team": "db"}}


def test_nothing_behind_the_sign_puts_the_default_back(commands, alerts) -> None:
    commands.ok(
        "webhook", "set", "alerts", "concurrency=8", "max_attempts=3", "give_up_after=1h", "label.a=b"
    )
    commands.ok("webhook", "set", "alerts", "concurrency=", "max_attempts=", "give_up_after=", "label.a=")

    record = shown(commands)
    assert (record["concurrency"], record["max_attempts"], record["give_up_after_seconds"]) == (
        32,
        None,
        259200,
    )
    assert record["labels"] == {}


def test_a_limit_is_changed_without_any_key(commands, alerts) -> None:
    commands.ok("webhook", "set", "alerts", "concurrency=8", MASTER_KEY=None)

    assert shown(commands)["concurrency"] == 8


def test_a_url_is_not_changed_with_a_wrong_key(commands, alerts, other_key) -> None:
    refused = commands("webhook", "set", "alerts", "url=https://203.0.113.10/", MASTER_KEY=other_key)

    assert refused.status == 2
    assert shown(commands)["url_origin"] == "https://203.0.113.9"


def test_a_new_url_is_judged_sealed_and_its_origin_shown(commands, alerts, database) -> None:
    refused = commands("webhook", "set", "alerts", "url=https://10.0.0.1/")
    commands.ok("webhook", "set", "alerts", "url=https://203.0.113.10:8443/n3w")

    assert refused.status == 3
    assert shown(commands)["url_origin"] == "https://203.0.113.10:8443"
    assert shown(commands, "--reveal")["revealed"]["url"] == "https://203.0.113.10:8443/n3w"


def test_a_new_path_alone_is_audited_as_a_changed_url(commands, alerts, database) -> None:
    commands.ok("webhook", "set", "alerts", "url=https://203.0.113.9/n3w")

    details = last_audit(database)[2]
    assert details["url"] == "changed"
    assert "n3w" not in json.dumps(details)


def test_headers_are_merged_without_case_and_may_come_from_a_file(
    commands, alerts, tmp_path, database
) -> None:
    (tmp_path / "token").write_text("Bearer s3cret\n")
    commands.ok("webhook", "set", "alerts", "header.X-Team=db", "header.authorization=old")
    commands.ok("webhook", "set", "alerts", "header.Authorization=@token")

    assert shown(commands, "--reveal")["revealed"]["headers"] == {
        "X-Team": "db",
        "Authorization": "Bearer s3cret",
    }
    assert last_audit(database)[0] != "webhook_changed"  # but the reveal itself
    commands.ok("webhook", "set", "alerts", "header.X-TEAM=")
    assert list(shown(commands, "--reveal")["revealed"]["headers"]) == ["Authorization"]
    assert "s3cret" not in str(database.execute("SELECT details FROM pggit.webhook_audit_log").fetchall())


def test_the_last_header_leaves_the_column_empty(commands, alerts, database) -> None:
    commands.ok("webhook", "set", "alerts", "header.X-Team=db")
    commands.ok("webhook", "set", "alerts", "header.X-Team=")

    assert database.execute("SELECT sealed_headers FROM pggit.webhook").fetchone() == (None,)


def test_a_taken_name_changes_nothing(commands, alerts, hook) -> None:
    commands.ok("webhook", "add", hook, "--name", "other")
    refused = commands("webhook", "set", "other", "name=alerts", "concurrency=8")

    assert refused.status == 2
    assert commands.ok("webhook", "show", "other", "--json").json["concurrency"] == 32


@pytest.mark.parametrize("command", [["show"], ["set", "concurrency=8"], ["remove"], ["test"]])
@pytest.mark.parametrize("which", ["4711", "nobody"])
def test_what_is_not_registered_is_not_found(commands, command, which) -> None:
    name, *words = command
    refused = commands("webhook", name, which, *words)

    assert (refused.status, refused.out) == (1, "")
    assert refused.err.startswith(f"error: no webhook {'has the id' if which == '4711' else 'is named'}")


def test_show_keeps_what_is_sealed_to_itself(commands, alerts) -> None:
    plain = commands.ok("webhook", "show", "alerts")
    listed = commands.ok("webhook", "list")
    as_json = commands.ok("webhook", "list", "--json")

    assert "https://203.0.113.9" in plain.out
    assert not [
        word for word in ("tok3n", "whsec_") for result in (plain, listed, as_json) if word in result.out
    ]


def test_a_reveal_shows_all_and_is_audited(commands, alerts, database, hook) -> None:
    revealed = shown(commands, "--reveal")["revealed"]

    assert revealed["url"] == hook
    assert revealed["secrets"]["1"].startswith("whsec_")
    operations = database.execute(
        "SELECT operation FROM pggit.webhook_audit_log ORDER BY audit_id"
    ).fetchall()
    assert operations[-2:] == [("url_decrypted",), ("secret_revealed",)]


def test_a_reveal_for_people_prints_the_same(commands, alerts, hook) -> None:
    commands.ok("webhook", "set", "alerts", "header.X-Team=db")

    out = commands.ok("webhook", "show", "alerts", "--reveal").out
    assert hook in out
    assert "header X-Team  db" in out
    assert "whsec_" in out


def test_a_reveal_with_a_wrong_key_is_refused_and_names_it(commands, alerts, other_key) -> None:
    refused = commands("webhook", "show", "alerts", "--reveal", MASTER_KEY=other_key)

    assert (refused.status, refused.out) == (2, "")
    assert "'test'" in refused.err


def test_list_shows_every_webhook_by_id(commands, hook) -> None:
    assert "no webhook is registered" in commands.ok("webhook", "list").out
    for webhook_id in ("9", "-2", "4"):
        commands.ok("webhook", "add", hook, "--id", webhook_id)

    assert [record["webhook_id"] for record in commands.ok("webhook", "list", "--json").json] == [-2, 4, 9]


def test_remove_takes_secrets_along_and_lets_deliveries_wait(commands, alerts, database, enqueued) -> None:
    enqueued(alerts)
    removed = commands.ok("webhook", "remove", "alerts")

    assert "1 deliveries wait" in removed.out
    assert database.execute("SELECT count(*) FROM pggit.webhook_secret").fetchone() == (0,)
    assert database.execute("SELECT unknown_since IS NOT NULL FROM pggit.webhook_limit").fetchone() == (True,)
    assert last_audit(database)[:2] == ("webhook_removed", alerts)


def test_a_removed_id_takes_its_deliveries_back(commands, alerts, database, enqueued, hook) -> None:
    enqueued(alerts)
    commands.ok("webhook", "remove", "alerts")
    commands.ok("webhook", "add", hook, "--id", str(alerts))

    assert database.execute("SELECT unknown_since FROM pggit.webhook_limit").fetchone() == (None,)


def test_a_status_policy_and_a_weight_are_kept_shown_and_audited(commands, alerts, database) -> None:
    commands.ok("webhook", "set", "alerts", "status_policy=404:transient,5xx:permanent", "weight=7")
    record = shown(commands)
    _, _, details = last_audit(database)
    commands.ok("webhook", "set", "alerts", "status_policy=", "weight=")

    assert (record["status_policy"], record["weight"]) == ({"404": "transient", "5xx": "permanent"}, 7)
    assert details["status_policy"] == {"from": None, "to": {"404": "transient", "5xx": "permanent"}}
    assert (shown(commands)["status_policy"], shown(commands)["weight"]) == (None, 1)


def test_a_policy_that_somebody_wrote_stays_until_it_is_set(commands, alerts, database) -> None:
    database.execute("UPDATE pggit.webhook SET status_policy = '[404]'")
    commands.ok("webhook", "set", "alerts", "concurrency=8")

    assert shown(commands)["status_policy"] == [404]


def test_what_workers_learnt_of_late_is_shown(commands, alerts, database) -> None:
    learn = "UPDATE pggit.webhook_limit SET learned_concurrency = 3, learned_at = now() - %s::interval"
    seen = []
    for age in ("59 minutes", "61 minutes"):
        database.execute(learn, (age,))
        seen.append(shown(commands)["learned_concurrency"])

    assert seen == [3, None]


def test_what_is_not_set_is_shown_as_what_holds_then(commands, alerts) -> None:
    def facts() -> dict[str, str]:
        lines = commands.ok("webhook", "show", "alerts", DELIVERY_TIMEOUT_SECONDS="7").out.splitlines()
        return {line[:24].strip(): line[24:].strip() for line in lines}

    width = len("attempt timeout seconds")
    assert width < 24
    unset = facts()
    commands.ok("webhook", "set", "alerts", "attempt_timeout=2s", "max_attempts=9", "max_body_bytes=4096")
    names = ("attempt timeout seconds", "max attempts", "max body bytes")

    assert [unset[name] for name in names] == [
        "7 (default)",
        "max_retries of the delivery + 1 (default)",
        "1048576 (default)",
    ]
    assert [facts()[name] for name in names] == ["2", "9", "4096"]
    assert shown(commands)["max_attempts"] == 9
