"""What `doctor` looks at in the database: each check is one question, and an answer that says what to do.

A check that cannot be made (a right is lacking, a table is gone) is a finding like any other, so that the
rest is still looked at. Nothing here changes anything, and no payload is read.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

import attrs
import trio

from pggit_reactor.core.secret import Secret
from pggit_reactor.core.status_policy import StatusPolicy
from pggit_reactor.db.connect import TrioConnection, open_connection
from pggit_reactor.db.keys import KeyState, read_sealed_counts, report_keys
from pggit_reactor.db.migrate import ENCODING, SERVER_VERSION_MIN
from pggit_reactor.db.migrate import check as check_migrations
from pggit_reactor.db.statements import statements
from pggit_reactor.db.webhooks import UNOPENABLE
from pggit_reactor.errors import DatabaseError
from pggit_reactor.security.keyring import Keyring

ROWS_MAX: Final = 10_000
"""Rows are counted up to here."""
IDS_MAX: Final = 20
"""Webhooks and transactions are named up to here."""
SKEW_SECONDS_MAX: Final = 1.0
HEARTBEAT_SECONDS_MAX: Final = 30.0
LATE_SECONDS: Final = 60.0
UNSEALED_MAX: Final = 1_000
"""Audit ids that may wait to be sealed; a pass takes a few seconds."""
LONG_TRANSACTION_SECONDS: Final = 600.0
LISTEN_SECONDS_MAX: Final = 5.0
QUEUE_USAGE_MAX: Final = 0.25
_DAY_SECONDS: Final = 86_400.0
CERTIFICATE_SECONDS_MIN: Final = 30 * _DAY_SECONDS

_SQL = statements("diagnosis")


class Level(StrEnum):
    """How bad a finding is; `NOTE` is what one should know and may have meant."""

    OK = "ok"
    NOTE = "note"
    TROUBLE = "trouble"


@attrs.frozen(kw_only=True)
class Finding:
    """The answer of one check."""

    check: str
    level: Level
    what: str
    remedy: str | None = None
    """What to do; always there for trouble."""


Check = Callable[[], Awaitable[list[Finding]]]


async def guarded(check: str, run: Check) -> list[Finding]:
    """Run a check; a database that refuses it is a finding."""
    try:
        return await run()
    except DatabaseError as error:
        return [
            trouble(
                check,
                f"cannot be looked at: {error}",
                "run doctor as a role that may read schema pggit, such as a member of pggit_operator",
            )
        ]


def good(check: str, what: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(check=check, level=Level.OK, what=what)


def note(check: str, what: str, remedy: str | None = None) -> Finding:
    """Return a finding that one should know of."""
    return Finding(check=check, level=Level.NOTE, what=what, remedy=remedy)


def trouble(check: str, what: str, remedy: str) -> Finding:
    """Return a finding that something is wrong."""
    return Finding(check=check, level=Level.TROUBLE, what=what, remedy=remedy)


@attrs.frozen(kw_only=True)
class Server:
    """The database server, as this session sees it."""

    version: str
    version_number: int
    encoding: str
    database: str
    user: str
    is_standby: bool
    is_read_only: bool
    replication_role: str
    notify_is_off: bool
    started: str
    clock: float
    """Unix time of the database."""


async def read_server(connection: TrioConnection) -> Server:
    """Ask the server who and how it is."""
    names = [field.name for field in attrs.fields(Server)]
    (row,) = await _rows(connection, "server")
    return Server(**dict(zip(names, row, strict=True)))


def judge_server(server: Server) -> list[Finding]:
    """Judge version, encoding and whether it takes writes."""
    found = []
    if server.version_number < SERVER_VERSION_MIN:
        what = f"PostgreSQL {server.version} is too old"
        found.append(trouble("database", what, "upgrade to PostgreSQL 15 or later"))
    if server.encoding != ENCODING:
        what = f"database {server.database} has encoding {server.encoding}"
        found.append(
            trouble("database", what, "make a database with ENCODING 'UTF8', and move the data there")
        )
    if server.is_standby or server.is_read_only:
        what = "the server is a standby" if server.is_standby else "the session is read-only"
        found.append(
            trouble(
                "database",
                f"{what}: nothing can be claimed",
                "connect to the primary; with several hosts add target_session_attrs=read-write to the URL",
            )
        )
    if not found:
        found.append(
            good("database", f"PostgreSQL {server.version}, {server.database} as {server.user}, read-write")
        )
    return found


def judge_clock(server: Server, *, wall: float) -> list[Finding]:
    """Compare the database's clock with *wall*, this machine's at the same moment."""
    skew = server.clock - wall
    if abs(skew) <= SKEW_SECONDS_MAX:
        return [good("clock", f"within {SKEW_SECONDS_MAX:g} s of the database's")]
    return [
        trouble(
            "clock",
            f"the database's clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} this machine's",
            "set both by NTP: signatures carry this machine's time, and receivers refuse old ones",
        )
    ]


async def check_schema(connection: TrioConnection) -> list[Finding]:
    """Compare the schema with what this program needs."""
    status = await check_migrations(connection)
    if status.too_new:
        what = "the schema is newer than this program"
        return [trouble("migrations", what, "upgrade pggit-reactor")]
    if status.edited:
        names = ", ".join(migration.file_name for migration in status.edited)
        what = f"{names} changed after being applied"
        return [trouble("migrations", what, "install the version that applied it")]
    if not status.is_current:
        missing = ", ".join(migration.file_name for migration in status.lacking) or "our own tables"
        return [trouble("migrations", f"the schema lacks {missing}", "run `pggit-reactor migrate`")]
    if status.pending:
        left = ", ".join(migration.file_name for migration in status.pending)
        remedy = "run `pggit-reactor migrate` when no older worker runs any more"
        return [note("migrations", f"the contract step {left} is yet to come", remedy)]
    return [good("migrations", f"{len(status.applied)} applied, none missing")]


async def check_roles(connection: TrioConnection, server: Server) -> list[Finding]:
    """Look for the four roles, and for the rights that a worker needs."""
    missing = [row[0] for row in await _rows(connection, "roles") if not row[1]]
    lacking = [f"{row[1]} on {row[0]}" for row in await _rows(connection, "lacking_rights")]
    found = []
    if missing:
        what = f"{', '.join(missing)}: missing, and their grants with them"
        remedy = "let a role with CREATEROLE create them (NOLOGIN), and grant as migrations/0001 does"
        found.append(note("roles", what, remedy))
    if lacking:
        what = f"{server.user} may not do a worker's work; it lacks {'; '.join(lacking)}"
        found.append(trouble("roles", what, f'GRANT pggit_worker TO "{server.user}"'))
    return found or [good("roles", f"all are there, and {server.user} has a worker's rights")]


async def check_rights(connection: TrioConnection, server: Server) -> list[Finding]:
    """See that nobody may do more than his work needs: this user, everybody, and callers of functions."""
    found = []
    is_superuser, is_owner = (await _rows(connection, "own_rights"))[0]
    if is_superuser or is_owner:
        kind = "a superuser" if is_superuser else "the owner of the tables, or may become it"
        what = f"{server.user} is {kind}: it may rewrite the audit log and read whatever is in clear"
        remedy = (
            "run workers as a login that is only IN ROLE pggit_worker, and commands as one of pggit_operator"
        )
        found.append(note("rights", what, remedy))
    leaks = [row[0] for row in await _rows(connection, "leaks", ids_max=IDS_MAX)]
    if leaks:
        what = f"everybody may: {'; '.join(leaks)}"
        remedy = (
            "REVOKE it from PUBLIC, and look at \\ddp: default privileges may give it to the next table again"
        )
        found.append(trouble("rights", what, remedy))
    unpinned = [row[0] for row in await _rows(connection, "unpinned", ids_max=IDS_MAX)]
    if unpinned:
        what = f"run as their owner with the caller's search_path: {', '.join(unpinned)}"
        remedy = "ALTER FUNCTION ... SET search_path = pg_catalog, pg_temp"
        found.append(trouble("rights", what, remedy))
    return found or [good("rights", f"{server.user} may do no more than is granted, and everybody nothing")]


_RESTORE_ANY: Final = "restore it as the migrations make it"
_RESTORE: Final = MappingProxyType(
    {
        "trigger_alert_queue": "SELECT pggit.attach_alert_queue(), as the owner: phase 7's alerts are not delivered"
    }
)


async def check_triggers(connection: TrioConnection, server: Server) -> list[Finding]:
    """See that the triggers of queue and registry fire."""
    rows = await _rows(connection, "triggers")
    found = [
        trouble("triggers", f"{row[1]} on {row[0]} is missing", _RESTORE.get(row[1], _RESTORE_ANY))
        for row in rows
        if not row[2]
    ]
    found += [
        trouble(
            "triggers", f"{row[1]} on {row[0]} is disabled", f"ALTER TABLE {row[0]} ENABLE TRIGGER {row[1]}"
        )
        for row in rows
        if row[2] and not row[3]
    ]
    if server.replication_role == "replica":
        what = "session_replication_role is replica: no trigger fires"
        found.append(
            trouble("triggers", what, "RESET it for this database and role (ALTER DATABASE, ALTER ROLE)")
        )
    if server.notify_is_off:
        what = "pggit.notify is off for this database or role: its inserts wake nobody and wait for the poll"
        found.append(note("triggers", what, "RESET pggit.notify where that was not meant"))
    return found or [good("triggers", f"all {len(rows)} are enabled")]


async def check_listen(connection: TrioConnection, server: Server, listen_url: Secret[str]) -> list[Finding]:
    """LISTEN where a worker would, NOTIFY from *connection*, and wait for it to come."""
    pooler = (
        "give workers a direct connection in PGGIT_REACTOR_DATABASE_LISTEN_URL: behind a pooler in transaction "
        "mode they cannot work"
    )
    channel = f"pggit_doctor_{secrets.token_hex(8)}"
    try:
        async with open_connection(
            listen_url, application_name="pggit-reactor doctor", prepare_threshold=None
        ) as listening:
            where = await read_server(listening)
            if (where.database, where.started) != (server.database, server.started):
                what = f"the URL for LISTEN leads to another server or database ({where.database})"
                return [trouble("listen", what, "let both URLs name the same database of the same server")]
            await listening.execute(f"LISTEN {channel}")
            started = trio.current_time()
            await connection.execute("SELECT pg_notify(%s, '')", (channel,))
            with trio.move_on_after(LISTEN_SECONDS_MAX):
                await listening.wait_notifies()
                milliseconds = (trio.current_time() - started) * 1000
                return [good("listen", f"a notification came back in {milliseconds:.1f} ms")]
    except DatabaseError as error:
        return [trouble("listen", f"LISTEN does not work there: {error}", pooler)]
    what = f"no notification came within {LISTEN_SECONDS_MAX:g} s: a pooler in transaction mode swallows them"
    return [trouble("listen", what, pooler)]


async def check_keys(connection: TrioConnection, keyring: Keyring | None) -> list[Finding]:
    """Compare the key ring with the check values and with what is sealed."""
    found = []
    for report in await report_keys(connection, keyring):
        if report.is_trouble:
            what = f"master key {report.key_id!r} is {report.state}, and seals {report.sealed_count} value(s)"
            remedy = "use the key file that this database was sealed with (PGGIT_REACTOR_MASTER_KEY_FILE)"
            found.append(trouble("keys", what, remedy))
        elif report.state is KeyState.UNUSED:
            found.append(note("keys", f"master key {report.key_id!r} has sealed nothing here yet"))
    unreadable = (await read_sealed_counts(connection)).get(None, 0)
    if unreadable:
        what = f"{unreadable} sealed value(s) are of a form that this version does not know"
        found.append(trouble("keys", what, "upgrade pggit-reactor, or register these webhooks anew"))
    if keyring is None and not found:
        remedy = "make one with `pggit-reactor key new`, and set PGGIT_REACTOR_MASTER_KEY_FILE"
        found.append(trouble("keys", "no master key is set: no worker starts", remedy))
    return found or [good("keys", "every key that the database knows is in the ring, and right")]


async def check_queue(connection: TrioConnection, *, hold_seconds: float) -> list[Finding]:
    """Look for rows that wait for what will not come by itself."""
    found = []
    stuck = (await _rows(connection, "never_ready", rows_max=ROWS_MAX))[0][0]
    if stuck:
        what = f"{_count(stuck)} deliveries are never due: retrying without next_retry_at, or due at infinity"
        remedy = (
            "UPDATE pggit.alert_delivery_queue SET next_retry_at = now() WHERE delivery_status = 'retrying' "
            "AND next_retry_at IS NULL"
        )
        found.append(trouble("queue", what, remedy))
    for webhook_id, waiting in await _rows(connection, "unregistered", rows_max=ROWS_MAX, ids_max=IDS_MAX):
        what = f"{_count(waiting)} deliveries wait for webhook {webhook_id}, which nothing has registered"
        remedy = (
            f"pggit-reactor webhook add URL --id {webhook_id}, within {hold_seconds:g} s of when they came; "
            "later they are given up"
        )
        found.append(trouble("queue", what, remedy))
    return found or [good("queue", "every row that waits has a webhook and a time")]


async def check_webhooks(connection: TrioConnection) -> list[Finding]:
    """Name the webhooks that are not sent to."""
    found = []
    for webhook_id, name, state, reason, waiting in await _rows(
        connection, "halted", rows_max=ROWS_MAX, ids_max=IDS_MAX
    ):
        what = f"webhook {webhook_id} ({name}) is {state}: {reason}; {_count(waiting)} deliveries wait"
        remedy = f"pggit-reactor webhook {'enable' if state == 'disabled' else 'resume'} {webhook_id}"
        if reason.startswith(UNOPENABLE):
            found.append(trouble("webhooks", what, f"give workers the right keys, then {remedy}"))
        else:
            found.append(note("webhooks", what, f"once the reason is gone: {remedy}"))
    found += await _unreadable_policies(connection)
    return found or [good("webhooks", "none is paused or disabled")]


async def check_certificates(connection: TrioConnection) -> list[Finding]:
    """Name certificates of ours that have expired, or will soon."""
    found = []
    for webhook_id, name, kind, expires_at, seconds in await _rows(
        connection, "expiring_certificates", seconds=CERTIFICATE_SECONDS_MIN, ids_max=IDS_MAX
    ):
        what = f"{_CERTIFICATES[kind]} of webhook {webhook_id} ({name})"
        remedy = f"pggit-reactor webhook set {webhook_id} {kind}=@FILE, with its successor"
        if seconds <= 0:
            what += f" expired on {expires_at}: its deliveries fail"
            found.append(trouble("certificates", what, remedy))
        else:
            what += f" expires on {expires_at}, in {seconds / _DAY_SECONDS:.0f} days"
            found.append(note("certificates", what, remedy))
    days = CERTIFICATE_SECONDS_MIN / _DAY_SECONDS
    return found or [good("certificates", f"none of webhooks' own expires within {days:g} days")]


_CERTIFICATES: Final = MappingProxyType(
    {"ca": "a private authority", "client_certificate": "the client certificate"}
)


async def _unreadable_policies(connection: TrioConnection) -> list[Finding]:
    stored = await _rows(connection, "status_policies", rows_max=ROWS_MAX)
    complaints = {
        (webhook_id, name): StatusPolicy.read(policy).complaint for webhook_id, name, policy in stored
    }
    return [
        trouble(
            "webhooks",
            f"webhook {webhook_id} ({name}): {complaint}; workers go by the default table",
            f"pggit-reactor webhook set {webhook_id} status_policy=404:transient (or another; none: status_policy=)",
        )
        for (webhook_id, name), complaint in complaints.items()
        if complaint is not None
    ][:IDS_MAX]


async def check_workers(connection: TrioConnection) -> list[Finding]:
    """See that workers live and that due rows do not wait for them."""
    rows = await _rows(connection, "workers")
    alive = [row for row in rows if row[3] <= HEARTBEAT_SECONDS_MAX]
    late = (await _rows(connection, "overdue", rows_max=ROWS_MAX, late_seconds=LATE_SECONDS))[0][0]
    found = [
        note("workers", f"worker {row[0]} was last heard {row[3]:.0f} s ago; it ended without saying so")
        for row in rows
        if row[3] > HEARTBEAT_SECONDS_MAX
    ]
    if late:
        what = f"{_count(late)} deliveries have been due for over {LATE_SECONDS:g} s; {len(alive)} worker(s) live"
        remedy = (
            "look at the workers' log and at webhook concurrency"
            if alive
            else "start one: `pggit-reactor worker`"
        )
        found.append(trouble("workers", what, remedy))
    elif not alive:
        found.append(note("workers", "no worker runs", "start one: `pggit-reactor worker`"))
    versions = sorted({row[1] for row in alive})
    if len(versions) > 1:
        found.append(note("workers", f"versions differ: {', '.join(versions)}", "finish the upgrade"))
    return found or [good("workers", f"{len(alive)} live, nothing waits for them")]


async def check_audit(connection: TrioConnection) -> list[Finding]:
    """See that the audit log has a partition for its next rows."""
    bound = {"rows_max": ROWS_MAX, "late_seconds": LATE_SECONDS}
    fallen, reaches, unsealed, is_late = (await _rows(connection, "audit_partitions", **bound))[0]
    if fallen:
        what = f"{_count(fallen)} rows are in pggit.webhook_audit_log_default: partitions came too late"
        remedy = (
            "in one transaction move them out of it into a table, SELECT pggit.add_audit_partitions(), and insert "
            "them into pggit.webhook_audit_log again"
        )
        return [trouble("audit", what, remedy)]
    if not reaches:
        what = "the audit log has no partition for its next rows; they would fall into the default one"
        return [
            trouble("audit", what, "SELECT pggit.add_audit_partitions(), or start a worker, which does it")
        ]
    if unsealed > UNSEALED_MAX and is_late:
        what = f"{unsealed} audit ids are not sealed, and no worker has sealed any for {LATE_SECONDS:.0f} s"
        remedy = "read the workers' log (audit_chain_refused, audit_seal_failed), and run `pggit-reactor audit verify`"
        return [trouble("audit", what, remedy)]
    what = "partitions reach ahead, none of its rows fell out of them"
    if unsealed and is_late:
        return [
            note(
                "audit",
                f"{what}, but {unsealed} of its ids are not sealed",
                "start a worker, which seals them",
            )
        ]
    return [good("audit", f"{what}, and rows are sealed")]


async def check_activity(connection: TrioConnection) -> list[Finding]:
    """Look for what slows all of the database: a full notification queue, old transactions."""
    found = []
    usage = (await _rows(connection, "notification_queue"))[0][0]
    if usage > QUEUE_USAGE_MAX:
        what = f"the notification queue is {usage:.0%} full; when it is full, producers cannot commit"
        remedy = (
            "end the session that listens and stays in a transaction (pg_stat_activity, idle in transaction)"
        )
        found.append(trouble("activity", what, remedy))
    bound = {"seconds": LONG_TRANSACTION_SECONDS, "ids_max": IDS_MAX}
    for pid, user, application, state, seconds in await _rows(connection, "long_transactions", **bound):
        what = f"process {pid} ({user}, {application or 'no name'}, {state}) holds a transaction for {seconds:.0f} s"
        remedy = f"let it end, or SELECT pg_terminate_backend({pid}): dead rows pile up behind it, and claims slow down"
        found.append(trouble("activity", what, remedy))
    for gid, owner, seconds in await _rows(connection, "prepared_transactions", **bound):
        what = f"the prepared transaction {gid!r} of {owner} is {seconds:.0f} s old"
        found.append(trouble("activity", what, "COMMIT PREPARED or ROLLBACK PREPARED it"))
    return found or [good("activity", "no old transaction, and room for notifications")]


def _count(rows: int) -> str:
    return f"{rows} or more" if rows >= ROWS_MAX else str(rows)


async def _rows(connection: TrioConnection, name: str, **bound: object) -> Sequence[tuple[Any, ...]]:
    cursor = await connection.execute(_SQL[name], bound or None)
    return await cursor.fetchall()
