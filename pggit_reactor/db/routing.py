"""Routing rules and the defaults behind them: list, add, remove, explain. The database audits each change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

import attrs

from pggit_reactor.core.routing import Alert, Kind, Severity, Verdict
from pggit_reactor.db.acting import acting
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.registry import By
from pggit_reactor.db.statements import statements
from pggit_reactor.errors import ConfigurationError, DatabaseError, NotFoundError

T = TypeVar("T")

_FOREIGN_KEY_VIOLATION: Final = "23503"
_UNIQUE_VIOLATION: Final = "23505"
_SQL = statements("routing")


@attrs.frozen(kw_only=True)
class RuleRecord:
    """A rule or a default, as it is listed."""

    kind: Kind = attrs.field(converter=Kind)
    rule_id: int
    severity: str | None
    """None, of a default: the severities that no default names."""
    anomaly_type: str | None
    bottleneck_type: str | None
    webhook_type: str | None
    webhook_id: int | None
    webhook_name: str | None
    """None where nothing is registered under the id."""
    escalation_level: int | None
    is_active: bool


@attrs.frozen(kw_only=True)
class RouteVerdict:
    """What a rule says to an alert, in words too."""

    kind: Kind = attrs.field(converter=Kind)
    rule_id: int
    webhook_id: int | None
    webhook_name: str | None
    verdict: Verdict = attrs.field(converter=Verdict)
    explanation: str


async def list_rules(connection: TrioConnection) -> tuple[RuleRecord, ...]:
    """Return all rules, then all defaults, each by id."""
    return await _fetch(connection, "list", {}, RuleRecord)


async def add_rule(
    connection: TrioConnection, alert: Alert, *, webhook_id: int, escalation_level: int = 1, by: By
) -> int:
    """Send alerts such as *alert* to a webhook, where a type that is None means all; return the rule's id.

    The webhook need not be registered, except where phase 7's table has a foreign key to its own webhooks:
    `ConfigurationError` where that refuses it.
    """
    bound = {**attrs.asdict(alert), "webhook_id": webhook_id, "escalation_level": escalation_level}
    try:
        return await _added(connection, "add_rule", bound, by=by)
    except DatabaseError as error:
        if error.sqlstate != _FOREIGN_KEY_VIOLATION:
            raise
        raise ConfigurationError(
            f"webhook {webhook_id} is not in phase 7's alert_notification_webhooks, and the foreign key of "
            "phase 7's alert_routing_rules takes no other: drop that key (ALTER TABLE pggit.alert_routing_rules "
            "DROP CONSTRAINT ...), or add a default (--default)"
        ) from error


async def add_default(
    connection: TrioConnection,
    *,
    severity: Severity | None,
    webhook_type: str | None = None,
    webhook_id: int | None = None,
    by: By,
) -> int:
    """Send alerts that no rule sends anywhere to one webhook, or to all of a type; return the default's id.

    `ConfigurationError` where there is such a default.
    """
    assert (webhook_id is None) != (webhook_type is None)
    bound = {"severity": severity, "webhook_type": webhook_type, "webhook_id": webhook_id}
    try:
        return await _added(connection, "add_default", bound, by=by)
    except DatabaseError as error:
        if error.sqlstate != _UNIQUE_VIOLATION:
            raise
        raise ConfigurationError("there is such a default; `route list` shows it") from error


async def remove_rule(connection: TrioConnection, kind: Kind, rule_id: int, *, by: By) -> None:
    """Remove a rule or a default; `NotFoundError`."""
    async with acting(connection, by):
        cursor = await connection.execute(_SQL[f"remove_{kind}"], {"rule_id": rule_id})
        if not cursor.rowcount:
            raise NotFoundError(f"there is no {kind} {rule_id}; `pggit-reactor route list` shows all")


async def explain_route(connection: TrioConnection, alert: Alert) -> tuple[RouteVerdict, ...]:
    """Return what every rule and default says to *alert*; nothing is sent."""
    return await _fetch(connection, "explain", attrs.asdict(alert), RouteVerdict)


async def _added(connection: TrioConnection, name: str, bound: Mapping[str, object], *, by: By) -> int:
    async with acting(connection, by):
        row = await (await connection.execute(_SQL[name], bound)).fetchone()
    assert row is not None
    return int(row[0])


async def _fetch(
    connection: TrioConnection, name: str, bound: Mapping[str, Any], kind: type[T]
) -> tuple[T, ...]:
    cursor = await connection.execute(_SQL[name], bound)
    names = [column.name for column in cursor.description or ()]
    return tuple(kind(**dict(zip(names, row, strict=True))) for row in await cursor.fetchall())
