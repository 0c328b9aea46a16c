"""pause, resume, disable and enable, from SQL."""

from __future__ import annotations

import pytest
import trio
from psycopg import errors

from pggit_reactor.testing.rig import Rig

STATE = "SELECT state, state_reason, state_by FROM pggit.webhook WHERE webhook_id = 7"
PAUSED_UNTIL = "SELECT paused_until > now() FROM pggit.webhook_limit WHERE webhook_id = 7"


def test_a_webhook_is_paused_until_it_is_resumed(call, owner, operator, webhook, heard, audited):
    heard()
    assert call("pause_webhook", webhook, None, "their maintenance") == (
        "webhook 7 (alerts) is paused until it is resumed; its deliveries wait"
    )
    assert owner.execute(STATE).fetchone() == ("paused", "their maintenance", operator.info.user)

    assert heard() == ["7"]
    assert call("resume_webhook", webhook) == "webhook 7 (alerts) is active"
    assert owner.execute(STATE).fetchone() == ("active", None, operator.info.user)
    assert heard() == ["7"]
    assert audited(
        "operation", "webhook_id", "user_id = session_user", "details->>'reason'", "ip_address"
    ) == [
        (
            "webhook_paused",
            7,
            True,
            "their maintenance",
            operator.execute("SELECT inet_client_addr()").fetchone()[0],
        ),
        ("webhook_resumed", 7, True, None, operator.execute("SELECT inet_client_addr()").fetchone()[0]),
    ]


def test_a_pause_for_a_time_is_a_limit_that_ends_by_itself(call, owner, webhook):
    said = call("pause_webhook", webhook, "2999-01-01T00:00+00", None)

    assert said.startswith("webhook 7 (alerts) is paused until 2999-")
    assert owner.execute(STATE).fetchone()[0] == "active"
    assert owner.execute(PAUSED_UNTIL).fetchone() == (True,)
    call("resume_webhook", webhook)
    assert owner.execute(PAUSED_UNTIL).fetchone() == (None,)


def test_one_pause_replaces_the_other(call, owner, webhook):
    call("pause_webhook", webhook, "2999-01-01T00:00+00", None)
    call("pause_webhook", webhook, "infinity", None)
    assert owner.execute(STATE).fetchone()[0] == "paused"
    assert owner.execute(PAUSED_UNTIL).fetchone() == (None,)

    call("pause_webhook", webhook, "2999-01-01T00:00+00", None)
    assert owner.execute(STATE).fetchone()[0] == "active"
    assert owner.execute(PAUSED_UNTIL).fetchone() == (True,)


def test_what_changes_nothing_says_so_and_is_not_audited(call, webhook, audited, heard):
    heard()
    assert call("resume_webhook", webhook) == "webhook 7 (alerts) was not paused"
    assert call("enable_webhook", webhook) == "webhook 7 (alerts) was not disabled"
    call("disable_webhook", webhook)
    assert call("disable_webhook", webhook) == "webhook 7 (alerts) was disabled already"

    assert audited("operation") == [("webhook_disabled",)]
    assert heard() == ["7"]


@pytest.mark.parametrize("name", ["pause_webhook", "resume_webhook"])
def test_a_disabled_webhook_is_enabled_and_nothing_else(call, owner, webhook, name):
    call("disable_webhook", webhook, "gone")
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match=r"is disabled; pggit\.enable_webhook"):
        call(name, webhook)

    call("enable_webhook", webhook)
    assert owner.execute(STATE).fetchone()[:2] == ("active", None)


def test_a_paused_webhook_is_not_enabled(call, webhook):
    call("pause_webhook", webhook)
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match=r"pggit\.resume_webhook"):
        call("enable_webhook", webhook)


@pytest.mark.parametrize(
    "name", ["pause_webhook", "resume_webhook", "disable_webhook", "enable_webhook", "reset_webhook"]
)
def test_an_unknown_or_missing_id_is_named(call, name):
    with pytest.raises(errors.NoDataFound, match="p_webhook_id is 99"):
        call(name, 99)
    with pytest.raises(errors.NullValueNotAllowed, match="p_webhook_id is null"):
        call(name, None)


def test_a_time_that_is_past_is_refused(call, webhook):
    with pytest.raises(errors.InvalidParameterValue, match="p_until is 2001"):
        call("pause_webhook", webhook, "2001-01-01")


@pytest.mark.parametrize("role", ["pggit_producer", "pggit_worker", "pggit_reader"])
@pytest.mark.parametrize(
    "function",
    [
        "pause_webhook(7)", "resume_webhook(7)", "disable_webhook(7)", "enable_webhook(7)", "reset_webhook(7)",
        "replay_delivery(7)", "requeue_delivery(7)", "cancel_delivery(7)", "replay_delivery('7')",
        "requeue_delivery('7')", "cancel_delivery('7')",
    ],
)  # fmt: skip
def test_only_operators_operate(owner, role, function):
    owner.execute(f"SET ROLE {role}")
    with pytest.raises(errors.InsufficientPrivilege):
        owner.execute(f"SELECT pggit.{function}")


def test_helpers_are_for_the_functions_alone(operator):
    operator.execute("SET ROLE pggit_operator")
    with pytest.raises(errors.InsufficientPrivilege):
        operator.execute("SELECT pggit.audit_change('webhook_paused', 7, NULL, '{}')")


def test_a_webhook_is_reset_told_to_workers_and_audited(call, owner, operator, webhook, heard, audited):
    owner.execute(
        "UPDATE pggit.webhook_limit SET breaker_until = now() - interval '1 s', retry_after_until = 'infinity'"
    )
    heard()
    assert call("reset_webhook", webhook, "mended") == (
        "webhook 7 (alerts) is reset: its breaker was half-open, its receiver had asked to wait until infinity;"
        " it is sent to at once, at its full pace"
    )

    assert heard() == ["7"]
    assert owner.execute("SELECT blocked_until FROM pggit.webhook_limit").fetchone() == (None,)
    assert audited("operation", "details->>'reason'", "details->>'held'")[-1] == (
        "webhook_reset", "mended", "its breaker was half-open, its receiver had asked to wait until infinity",
    )  # fmt: skip


async def test_workers_stop_at_a_pause_and_go_on_at_resume(rig: Rig):
    webhook_id = await rig.add_webhook()
    async with rig.worker(WORKER_POLL_SECONDS=60):
        await rig.insert(webhook_id)
        await rig.until_all("delivered")
        await rig.database.execute("SELECT pggit.pause_webhook(%s)", (webhook_id,))
        (waiting,) = await rig.insert(webhook_id)
        other = await rig.add_webhook("/other")
        (quick,) = await rig.insert(other)
        await rig.until_status(quick, "delivered")
        assert await rig.row(waiting, "delivery_status") == ("pending",)

        await rig.database.execute("SELECT pggit.resume_webhook(%s)", (webhook_id,))
        with trio.fail_after(10):
            await rig.until_status(waiting, "delivered")


async def test_a_pause_for_a_time_ends_without_anybody(rig: Rig):
    webhook_id = await rig.add_webhook()
    async with rig.worker():
        await rig.database.execute(
            "SELECT pggit.pause_webhook(%s, clock_timestamp() + interval '1 s')", (webhook_id,)
        )
        (waiting,) = await rig.insert(webhook_id)
        await rig.until_status(waiting, "delivered")

    assert await rig.database.fetch_value(
        "SELECT delivered_at >= paused_until"
        " FROM pggit.alert_delivery_queue JOIN pggit.webhook_limit USING (webhook_id)"
    )
