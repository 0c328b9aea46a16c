"""Why a delivery has not been sent, and when it will be."""

from __future__ import annotations

import pytest

FUTURE = "2999-01-01T00:00+00"


@pytest.fixture
def explain(operator):
    def call(delivery_id: int) -> tuple:
        return operator.execute(
            "SELECT waits_for, due_at AT TIME ZONE 'UTC', explanation FROM pggit.explain_delivery(%s::bigint)",
            (delivery_id,),
        ).fetchone()

    return call


@pytest.fixture
def worker(owner):
    """A worker that was heard just now."""
    owner.execute(
        "INSERT INTO pggit.reactor_worker (instance, worker_id, version, host, pid, capacity)"
        " VALUES ('i', 'worker-1', '0', 'h', 1, 1)"
    )


@pytest.mark.usefixtures("webhook", "worker")
@pytest.mark.parametrize(
    ("columns", "waits_for", "words"),
    [
        ({"delivery_status": "delivered", "attempt_count": 2}, "nothing", "after 2 attempt(s)"),
        ({"delivery_status": "failed", "failed_reason": "exhausted", "last_error": "HTTP 503"}, "replay",
         "every attempt failed, after 0 attempt(s); the last said: HTTP 503; pggit.replay_delivery"),
        ({"delivery_status": "failed"}, "replay", "somebody other than our workers gave it up"),
        ({"lease_token": 1, "lease_expires_at": FUTURE, "leased_by": "worker-1"}, "answer", "worker-1 is sending it"),
        ({"webhook_id": 8}, "registration", "no webhook has the id 8: it waits for its registration, and is given up"),
        ({"delivery_status": "retrying"}, "requeue", "retrying without a next_retry_at"),
        ({"next_retry_at": "infinity"}, "requeue", "put off to infinity"),
        ({"next_retry_at": FUTURE}, "time", "it was put off to 2999"),
        ({"created_at": FUTURE}, "time", "it was put off to 2999"),
        ({"delivery_status": "retrying", "next_retry_at": FUTURE, "attempt_count": 3, "last_error": "timeout"}, "retry",
         "3 attempt(s) failed, the last with: timeout; the next is at 2999"),
        ({"held_until": FUTURE, "leased_by": "psql"}, "holder", "gave it to psql until"),
        ({"next_retry_at": FUTURE, "expires_at": "2998-01-01"}, "time", "it expires at 2998"),
        ({}, "turn", "it is due; 0 deliveries of its webhook go before it, 32 at a time"),
    ],
)  # fmt: skip
def test_what_holds_a_delivery_back_is_named(enqueue, explain, columns, waits_for, words):
    found, due_at, explanation = explain(enqueue(**columns))

    assert (found, words in explanation) == (waits_for, True), explanation
    assert (due_at is not None) == (waits_for in {"answer", "time", "retry", "holder", "turn"})


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("statement", "waits_for", "words"),
    [
        ("SELECT pggit.pause_webhook(7, NULL, 'why')", "paused", ": why; pggit.resume_webhook(7) ends that"),
        ("SELECT pggit.disable_webhook(7, 'why')", "disabled", ": why; pggit.enable_webhook(7) ends that"),
        (f"SELECT pggit.pause_webhook(7, '{FUTURE}', 'why')", "pause", "its webhook is paused until 2999"),
        (f"UPDATE pggit.webhook_limit SET retry_after_until = '{FUTURE}'", "retry_after",
         "asked that nothing be sent before 2999"),
        (f"UPDATE pggit.webhook_limit SET breaker_until = '{FUTURE}'", "breaker", "is left alone until 2999"),
    ],
)  # fmt: skip
def test_what_holds_a_webhook_back_is_named(owner, webhook, enqueue, explain, statement, waits_for, words):
    delivery_id = enqueue(webhook)
    owner.execute(statement)
    found, due_at, explanation = explain(delivery_id)

    assert (found, words in explanation) == (waits_for, True), explanation
    assert (due_at is None) == (waits_for in {"paused", "disabled"})


@pytest.mark.usefixtures("webhook")
def test_that_no_worker_runs_is_said(enqueue, explain):
    assert explain(enqueue())[0] == "worker"


@pytest.mark.usefixtures("webhook", "worker")
def test_those_before_it_are_counted_by_priority_and_age(enqueue, explain):
    enqueue(priority=1)
    enqueue(created_at="2001-01-01")
    enqueue(next_retry_at=FUTURE)
    enqueue(priority=-1, created_at="2001-01-01")

    assert "2 deliveries of its webhook go before it" in explain(enqueue())[2]


@pytest.mark.usefixtures("webhook")
def test_a_reader_may_ask_and_learns_no_payload(owner, enqueue):
    delivery_id = enqueue(message_body='{"card": "4111"}')
    owner.execute("SET ROLE pggit_reader")

    row = owner.execute(
        "SELECT e::text FROM pggit.explain_delivery(%s::bigint) AS e", (delivery_id,)
    ).fetchone()
    assert "4111" not in row[0]


@pytest.mark.usefixtures("webhook", "worker")
def test_a_delivery_that_waits_for_a_token_is_told_when_its_own_comes(owner, enqueue, explain):
    owner.execute("UPDATE pggit.webhook SET rate_per_s = 0.01, burst = 2")
    owner.execute("UPDATE pggit.webhook_limit SET bucket_tat = now() + interval '200 s'")
    rows = [enqueue() for _ in range(4)]
    found, _, explanation = explain(rows[3])
    (seconds,) = owner.execute(
        "SELECT extract(epoch FROM due_at - now())::float8 FROM pggit.explain_delivery(%s::bigint)",
        (rows[3],),
    ).fetchone()

    assert found == "rate"
    assert explanation.startswith(
        "it is due; 3 deliveries of its webhook go before it; its webhook gets 0.01 a second"
    )
    # The bucket is empty, and fills by one each 100 s: three are for those before it.
    assert seconds == pytest.approx(400, abs=5)


@pytest.mark.usefixtures("webhook", "worker")
def test_an_untouched_or_filled_bucket_makes_nobody_wait(owner, enqueue, explain):
    owner.execute("UPDATE pggit.webhook SET rate_per_s = 0.01, burst = 2")
    row = enqueue()
    for moment in (None, "2001-01-01"):
        owner.execute("UPDATE pggit.webhook_limit SET bucket_tat = %s", (moment,))
        assert explain(row)[0] == "turn"


@pytest.mark.usefixtures("webhook", "worker")
def test_a_half_open_breaker_and_a_slow_start_are_told(owner, enqueue, explain):
    row = enqueue()
    owner.execute(
        "UPDATE pggit.webhook_limit SET breaker_until = now() - interval '1 s', probe_until = now() + interval '1 h'"
    )
    found, due_at, explanation = explain(row)
    assert (found, due_at is not None) == ("probe", True)
    assert "one delivery tries it at this moment" in explanation

    owner.execute("UPDATE pggit.webhook_limit SET probe_until = NULL")
    assert explain(row)[0] == "probe"
    assert "is tried with one delivery now" in explain(row)[2]

    owner.execute(
        "UPDATE pggit.webhook_limit SET breaker_until = NULL, recovering_since = now() - interval '10 s'"
    )
    found, _, explanation = explain(row)
    assert found == "turn"
    assert "its receiver has just recovered, and gets 40 % of that and growing" in explanation
