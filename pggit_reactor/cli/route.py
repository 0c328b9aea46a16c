"""`route`: which webhooks get which alerts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from pggit_reactor.cli.output import json_option, print_json, print_table, text
from pggit_reactor.cli.parameters import BIGINT, WEBHOOK
from pggit_reactor.cli.session import Session, pass_session
from pggit_reactor.core.routing import Alert, Kind, Severity, Verdict

if TYPE_CHECKING:
    from pggit_reactor.db.connect import TrioConnection
    from pggit_reactor.db.routing import RouteVerdict, RuleRecord

_SEVERITIES: Final = click.Choice([severity.value for severity in Severity], case_sensitive=False)
_severity = click.option("--severity", type=_SEVERITIES, required=True, help="How grave the alert is.")
_anomaly = click.option("--anomaly", metavar="TYPE", help="The type of its anomaly.")
_bottleneck = click.option("--bottleneck", metavar="TYPE", help="The type of its bottleneck.")
_default = click.option("--default", "is_default", is_flag=True, help="A default, not a rule.")


@click.group()
def route() -> None:
    """Say which webhooks get which alerts, and ask why.

    Rules choose the webhooks of an alert that is published (`SELECT pggit.publish(...)`). Where no rule sends
    it to an enabled webhook, the defaults do. Both are rows: pggit.alert_routing_rules, pggit.routing_default.

    \b
    Example: pggit-reactor route explain --severity CRITICAL --anomaly spike
    """


@route.command("list")
@json_option
@pass_session
def list_(session: Session, as_json: bool) -> None:
    """List the rules, and the defaults behind them.

    \b
    Example: pggit-reactor route list
    """
    rules = session.run(lambda: _list(session))
    if as_json:
        print_json(rules)
        return
    print_table([_line(rule) for rule in rules], when_empty="there is no rule and no default")


async def _list(session: Session) -> tuple[RuleRecord, ...]:
    from pggit_reactor.db.routing import list_rules

    async with session.open_database() as connection:
        return await list_rules(connection)


def _line(rule: RuleRecord) -> dict[str, object]:
    is_rule = rule.kind is Kind.RULE
    return {
        "kind": rule.kind,
        "id": rule.rule_id,
        "severity": rule.severity or "any other",
        "anomaly": (rule.anomaly_type or "all") if is_rule else None,
        "bottleneck": (rule.bottleneck_type or "all") if is_rule else None,
        "webhook": _aim(rule),
        "active": rule.is_active,
    }


def _aim(rule: RuleRecord) -> str:
    if rule.webhook_id is None:
        return f"all of type {rule.webhook_type}"
    return f"{rule.webhook_id} ({rule.webhook_name or 'not registered'})"


@route.command()
@click.argument("which", metavar="[WEBHOOK]", type=WEBHOOK, required=False)
@click.option("--type", "webhook_type", metavar="T", help="Of a default: all webhooks whose label type is T.")
@click.option(
    "--severity", type=_SEVERITIES, help="Of these alerts; a default without it is for all other severities."
)
@click.option("--anomaly", metavar="TYPE", help="Only of this type of anomaly.")
@click.option("--bottleneck", metavar="TYPE", help="Only of this type of bottleneck.")
@click.option(
    "--escalation", type=click.IntRange(1, 2), default=1, show_default=True,
    help="1 for who is told first, 2 for who is told on escalation.",
)  # fmt: skip
@_default
@pass_session
def add(
    session: Session,
    *,
    which: int | str | None,
    webhook_type: str | None,
    severity: str | None,
    anomaly: str | None,
    bottleneck: str | None,
    escalation: int,
    is_default: bool,
) -> None:
    """Send alerts to a webhook (its id or name); the last word printed is the rule's id.

    A rule without --anomaly takes all anomalies of its severity, one without --bottleneck all bottlenecks.

    \b
    Example: pggit-reactor route add alerts --severity CRITICAL --anomaly spike
             pggit-reactor route add --default --severity WARNING --type slack
    """
    if is_default:
        if anomaly or bottleneck:
            raise click.UsageError("a default looks at the severity alone")
        if (which is None) == (webhook_type is None):
            raise click.UsageError("a default needs a WEBHOOK or a --type")
    elif which is None or severity is None or webhook_type is not None:
        raise click.UsageError("a rule needs a WEBHOOK and a --severity")
    grave = None if severity is None else Severity(severity)
    if is_default:
        new_id = session.run(lambda: _add_default(session, which, webhook_type, grave))
    else:
        assert which is not None
        assert grave is not None
        alert = Alert(severity=grave, anomaly_type=anomaly, bottleneck_type=bottleneck)
        new_id = session.run(lambda: _add_rule(session, which, alert, escalation))
    click.echo(f"added {Kind.DEFAULT if is_default else Kind.RULE} {new_id}")


async def _add_rule(session: Session, which: int | str, alert: Alert, escalation_level: int) -> int:
    from pggit_reactor.db.routing import add_rule

    async with session.open_database() as connection:
        webhook_id = await _known_or_noted(session, connection, which)
        return await add_rule(
            connection, alert, webhook_id=webhook_id, escalation_level=escalation_level, by=session.actor
        )


async def _add_default(
    session: Session, which: int | str | None, webhook_type: str | None, severity: Severity | None
) -> int:
    from pggit_reactor.db.routing import add_default

    async with session.open_database() as connection:
        return await add_default(
            connection,
            severity=severity,
            webhook_type=webhook_type,
            webhook_id=None if which is None else await _known_or_noted(session, connection, which),
            by=session.actor,
        )


async def _known_or_noted(session: Session, connection: TrioConnection, which: int | str) -> int:
    from pggit_reactor.db.registry import is_registered

    webhook_id = await session.webhook_id(connection, which)
    if not await is_registered(connection, webhook_id):
        click.echo(f"note: webhook {webhook_id} is not registered; its deliveries wait until it is", err=True)
    return webhook_id


@route.command()
@click.argument("rule_id", metavar="ID", type=BIGINT)
@_default
@pass_session
def remove(session: Session, rule_id: int, is_default: bool) -> None:
    """Remove a rule, or a default.

    \b
    Example: pggit-reactor route remove 7
    """
    kind = Kind.DEFAULT if is_default else Kind.RULE
    session.run(lambda: _remove(session, kind, rule_id))
    click.echo(f"removed {kind} {rule_id}")


async def _remove(session: Session, kind: Kind, rule_id: int) -> None:
    from pggit_reactor.db.routing import remove_rule

    async with session.open_database() as connection:
        await remove_rule(connection, kind, rule_id, by=session.actor)


@route.command()
@_severity
@_anomaly
@_bottleneck
@json_option
@pass_session
def explain(
    session: Session, *, severity: str, anomaly: str | None, bottleneck: str | None, as_json: bool
) -> None:
    """Say who would get an alert, and what each rule says to it. Nothing is sent.

    \b
    Example: pggit-reactor route explain --severity WARNING --bottleneck LOCK
    """
    alert = Alert(severity=Severity(severity), anomaly_type=anomaly, bottleneck_type=bottleneck)
    verdicts = session.run(lambda: _explain(session, alert))
    if as_json:
        print_json(verdicts)
        return
    chosen = {verdict.webhook_id: verdict for verdict in verdicts if verdict.verdict is Verdict.CHOSEN}
    for webhook_id, verdict in chosen.items():
        click.echo(f"goes to webhook {webhook_id} ({text(verdict.webhook_name or 'not registered')})")
    if not chosen:
        click.echo("goes to nobody")
    click.echo()
    for verdict in verdicts:
        click.echo(f"{verdict.kind} {verdict.rule_id} {text(verdict.explanation)}")


async def _explain(session: Session, alert: Alert) -> tuple[RouteVerdict, ...]:
    from pggit_reactor.db.routing import explain_route

    async with session.open_database() as connection:
        return await explain_route(connection, alert)
