"""`audit list`, `verify`, `export`: who did what, and the proof that nobody changed it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import attrs
import click

from pggit_reactor.cli.exits import Exit
from pggit_reactor.cli.moments import PAST
from pggit_reactor.cli.output import json_option, print_facts, print_json, print_table
from pggit_reactor.cli.session import Session, pass_session
from pggit_reactor.core.audit_chain import FIRST_ID

if TYPE_CHECKING:
    from pggit_reactor.db.audit_chain import ChainReport
    from pggit_reactor.db.audit_log import AuditEntry, AuditFilter
    from pggit_reactor.db.connect import TrioConnection
    from pggit_reactor.security.keyring import Keyring

READ_SECONDS_MAX: Final = 7 * 86_400.0
"""A whole log may be read for as long as this."""
PROGRESS_ROWS: Final = 100_000
BREAKS_SHOWN_MAX: Final = 20
_DAY_US: Final = 86_400_000_000
_ANCHOR: Final = re.compile(r"([1-9][0-9]{0,17}):([0-9a-fA-F]{64})")


@click.group()
def audit() -> None:
    """Read the audit log, and prove that it is whole.

    Every attempt and every change by people is a row. Workers seal rows within seconds, in a chain that nobody
    can rewrite who has not the master key.

    \b
    Example: pggit-reactor audit verify
    """


def _anchor(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[int, str] | None:
    if text is None:
        return None
    match = _ANCHOR.fullmatch(text)
    if match is None:
        raise click.BadParameter("want NUMBER:HASH, as an earlier `audit verify` printed it")
    return int(match[1]), match[2]


@audit.command("list")
@click.option("--webhook", "webhook_id", type=int, metavar="ID", help="Only of this webhook.")
@click.option("--delivery", "delivery_id", type=int, metavar="ID", help="Only of this delivery.")
@click.option("--operation", metavar="WORD", help="Only this operation, such as webhook_changed.")
@click.option("--user", "user_id", metavar="NAME", help="Only by this user of the database, or this actor.")
@click.option(
    "--since", type=PAST, metavar="T", help="Only from then on: a time, or how long ago, such as 2h."
)
@click.option("--until", type=PAST, metavar="T", help="Only before then.")
@click.option("--before", type=int, metavar="AUDIT-ID", help="Only ids below this one: the page after.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many.")
@json_option
@pass_session
def list_(session: Session, /, *, limit: int, as_json: bool, **wanted: object) -> None:
    """Show rows of the audit log, the newest first.

    \b
    Example: pggit-reactor audit list --since 24h --operation webhook_changed
    """

    async def read() -> tuple[AuditEntry, ...]:
        from pggit_reactor.db.audit_log import list_audit

        async with session.open_database() as connection:
            return await list_audit(connection, _filter(wanted), rows_max=limit)

    entries = session.run(read)
    if as_json:
        print_json(entries)
        return
    print_table([_row(entry) for entry in entries], when_empty="no row of the audit log matches")


def _filter(wanted: Mapping[str, object]) -> AuditFilter:
    from pggit_reactor.db.audit_log import AuditFilter

    return AuditFilter(**wanted)  # type: ignore[arg-type]  # the options above, typed by click


def _row(entry: AuditEntry) -> dict[str, object]:
    what = entry.error_message or entry.details
    return {
        "id": entry.audit_id,
        "at": entry.occurred_at,
        "operation": entry.operation,
        "webhook": entry.webhook_id,
        "delivery": entry.delivery_id,
        "by": entry.user_id,
        "from": entry.ip_address,
        "status": entry.status_code,
        "what": "erased" if entry.erased else what,
    }


@audit.command()
@click.option(
    "--from-id",
    type=int,
    default=FIRST_ID,
    metavar="AUDIT-ID",
    help="Begin with this id: one more than the last that an earlier export wrote.",
)
@pass_session
def export(session: Session, from_id: int) -> None:
    """Write the audit log as JSON lines, by id, to standard output.

    Only what is final is written: rows that are sealed, up to the first id that an open transaction may still
    bring. So the next export, from the id that standard error names at the end, misses nothing.

    \b
    Example: pggit-reactor audit export --from-id 1001 >> audit.jsonl
    """

    async def write() -> int:
        from pggit_reactor.db.audit_log import EXPORT_PAGE_ROWS, export_page, settled_up_to

        next_id = from_id
        async with session.open_database(seconds=READ_SECONDS_MAX) as connection:
            to_id = await settled_up_to(connection)
            while True:
                page = await export_page(connection, from_id=next_id, to_id=to_id)
                for entry in page:
                    click.echo(json.dumps(attrs.asdict(entry)))
                next_id = page[-1].audit_id + 1 if page else next_id
                if len(page) < EXPORT_PAGE_ROWS:
                    return next_id

    click.echo(f"next: --from-id {session.run(write)}", err=True)


@audit.command()
@click.option(
    "--anchor",
    metavar="NUMBER:HASH",
    callback=_anchor,
    help="A segment that was noted down earlier: the chain must still hold it.",
)
@json_option
@pass_session
def verify(session: Session, anchor: tuple[int, str] | None, as_json: bool) -> int:
    """Check the chain over the audit log.

    Finds rows that were changed, removed or put in, and segments that were changed, removed or made without
    the master key. Rows that no worker has sealed yet are told of: they are not protected. Note the anchor
    that is printed where the database's owner cannot reach it: who has the whole database and the master key
    can cut off the end of the chain, and only the anchor tells. Exit 3 where something is wrong.

    \b
    Example: pggit-reactor audit verify --anchor 41:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    """

    async def check() -> ChainReport:
        from pggit_reactor.db.audit_chain import verify_chain
        from pggit_reactor.security.audit_seal import AuditSealer

        async with session.open_database(seconds=READ_SECONDS_MAX) as connection:
            keyring = await _right_keyring(session, connection)
            return await verify_chain(
                connection,
                check_seal=None if keyring is None else AuditSealer(keyring).check,
                anchor=anchor,
                kept_since_us=_now_us() - session.settings.retention.audit_days * _DAY_US,
                progress=_progress,
            )

    report = session.run(check)
    if as_json:
        print_json(report)
    else:
        _tell(report)
    return Exit.DONE if report.ok else Exit.TROUBLE


async def _right_keyring(session: Session, connection: TrioConnection) -> Keyring | None:
    """Return the key ring, none of whose keys is another than the database's of the same id."""
    from pggit_reactor.db.keys import read_key_checks

    if session.master_key() is None:
        return None
    keyring = session.keyring
    known = await read_key_checks(connection)
    await keyring.verify_checks(
        {check.key_id: check.check_value for check in known if check.key_id in keyring.ids}
    )
    return keyring


def _now_us() -> int:
    return time.time_ns() // 1000


def _progress(rows: int) -> None:
    if rows and rows % PROGRESS_ROWS == 0:
        click.echo(f"{rows} rows", err=True)


def _tell(report: ChainReport) -> None:
    facts: dict[str, object] = {
        "chain": "whole" if report.ok else f"BROKEN in {report.break_count} place(s)",
        "segments": report.segments,
        "rows": report.rows,
    }
    if report.late_rows:
        facts["of_these_late"] = f"{report.late_rows} (their transactions were open for longer than others)"
    if report.erased_rows:
        facts["of_these_erased"] = f"{report.erased_rows} (texts are gone, their digests are as sealed)"
    if report.dropped_before_id is not None:
        facts["dropped"] = f"rows below id {report.dropped_before_id}, which were old"
    facts["seals"] = _seals(report)
    facts["not_sealed_yet"] = (
        f"{report.tail_rows} row(s), the oldest of {report.tail_oldest_at}" if report.tail_rows else "none"
    )
    facts["anchor"] = f"{report.last_number}:{report.last_hash}" if report.last_number else None
    print_facts(facts)
    for found in report.breaks[:BREAKS_SHOWN_MAX]:
        where = "" if found.segment is None else f"segment {found.segment}: "
        click.echo(f"{found.kind}: {where}{found.what}")
    if report.break_count > BREAKS_SHOWN_MAX:
        click.echo(f"and {report.break_count - BREAKS_SHOWN_MAX} more")


def _seals(report: ChainReport) -> str:
    lacking = sum(report.unknown_keys.values())
    if not report.seals_checked and not lacking:
        return "none" if not report.segments else "not looked at: no master key is set"
    words = f"{report.seals_checked} checked"
    if lacking:
        keys = ", ".join(map(repr, report.unknown_keys))
        words += f"; {lacking} of keys that the key ring lacks ({keys}), which later ones vouch for"
    return words
