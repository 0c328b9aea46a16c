"""A worker seals the audit log beside delivering."""

from __future__ import annotations

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pggit_reactor.core.secret import Secret
from pggit_reactor.db.audit_chain import verify_chain
from pggit_reactor.security.audit_seal import AuditSealer
from pggit_reactor.security.keyring import Keyring
from pggit_reactor.testing.rig import MASTER_KEY

ALL_SEALED = (
    "SELECT coalesce((SELECT max(to_id) FROM pggit.audit_segment), 0)"
    " >= (SELECT max(audit_id) FROM pggit.webhook_audit_log)"
)


async def test_what_a_worker_writes_is_sealed_within_5_s_and_verifies(rig):
    webhook_id = await rig.add_webhook()
    async with rig.worker() as running:
        await rig.insert(webhook_id, 20)
        await rig.until_all("delivered")
        await rig.until(ALL_SEALED, seconds=5)
        sealed = running.metric("pggit_reactor_audit_rows_sealed_total")

    sealer = AuditSealer(Keyring.parse(Secret(MASTER_KEY)))
    report = await verify_chain(await rig.database.connect(), check_seal=sealer.check)
    assert (report.ok, report.rows, sealed, report.tail_rows) == (True, 20, 20, 0)
    assert report.seals_checked == report.segments


async def test_a_worker_that_is_only_a_worker_seals_and_prunes(rig, reactor_database):
    """Its login has the role pggit_worker and nothing else."""
    name = f"only_worker_{reactor_database.name}"
    await reactor_database.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'pw' IN ROLE pggit_worker")
    parts = conninfo_to_dict(reactor_database.dsn.reveal())
    rig.dsn = Secret(make_conninfo(**{**parts, "user": name, "password": "pw"}))
    webhook_id = await rig.add_webhook()
    await rig.database.execute(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, delivery_status, created_at)"
        " VALUES (1, 1, '{}', 'delivered', '2020-01-01')"
    )
    async with rig.process(RETENTION_DELIVERED_DAYS=1) as running:
        await rig.insert(webhook_id, 5)
        await rig.until_all("delivered")
        await rig.until(ALL_SEALED, seconds=10)
        pruned = await running.event("pruned", seconds=20)

    assert (pruned["deliveries"], pruned["audit_rows"]) == (1, 0)
    assert [
        event for event in running.events if event["event"] in {"audit_seal_failed", "retention_failed"}
    ] == []
    assert await rig.database.fetch_value(
        "SELECT NOT (rolsuper OR rolcreaterole OR rolcreatedb) FROM pg_roles WHERE rolname = %s", (name,)
    )


async def test_a_chain_that_somebody_forged_is_not_gone_on_with_and_delivery_goes_on(rig):
    webhook_id = await rig.add_webhook()
    async with rig.worker():
        await rig.insert(webhook_id)
        await rig.until(ALL_SEALED, seconds=10)
    await rig.database.execute("UPDATE pggit.audit_segment SET seal = sha256('forged') || seal")
    async with rig.process() as running:
        await rig.insert(webhook_id)
        await rig.until_all("delivered")
        event = await running.event("audit_chain_refused", seconds=10)

    assert event["level"] == "error"
    assert "audit verify" in event["reason"]
