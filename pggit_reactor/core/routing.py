"""Which webhooks an alert is for: every rule is judged, and the chosen ones' webhooks get it.

The twin of the SQL function `pggit.judge_rules`, which decides when an alert is published; a property test
compares the two. Rules come first; the defaults are asked only where no rule sends the alert to an enabled
webhook, so that an alert whose rules all point to disabled webhooks still arrives somewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

import attrs


class Severity(StrEnum):
    """How grave an alert is; the words are the database's (LEGACY 2.4)."""

    CRITICAL = "CRITICAL"
    WARNING = "WARNING"
    INFO = "INFO"


class Verdict(StrEnum):
    """What a rule says to an alert; the first reason against it, in this order."""

    NOT_NEEDED = "not_needed"
    """A default, and a rule was chosen."""
    INACTIVE = "inactive"
    SEVERITY = "severity"
    """It is for another severity; or for the severities without defaults of their own, and this has some."""
    ANOMALY_TYPE = "anomaly_type"
    BOTTLENECK_TYPE = "bottleneck_type"
    NO_WEBHOOK = "no_webhook"
    """A default for a type of webhook of which there is none."""
    DISABLED = "disabled"
    """It matches, and its webhook is disabled."""
    CHOSEN = "chosen"


class Kind(StrEnum):
    """Which table a rule is of."""

    RULE = "rule"
    DEFAULT = "default"


@attrs.frozen(kw_only=True)
class Alert:
    """What of an alert routing looks at."""

    severity: Severity
    anomaly_type: str | None = None
    bottleneck_type: str | None = None

    @property
    def asks_anomaly(self) -> bool:
        """Whether a rule's anomaly type counts: not for an alert that is of a bottleneck alone."""
        return self.anomaly_type is not None or self.bottleneck_type is None

    @property
    def asks_bottleneck(self) -> bool:
        """Whether a rule's bottleneck type counts: not for an alert that is of an anomaly alone."""
        return self.bottleneck_type is not None or self.anomaly_type is None


@attrs.frozen(kw_only=True)
class Rule:
    """A row of alert_routing_rules; a type that is None means all types."""

    rule_id: int
    severity: Severity
    webhook_id: int
    anomaly_type: str | None = None
    bottleneck_type: str | None = None
    is_active: bool = True


@attrs.frozen(kw_only=True)
class Default:
    """A row of routing_default: one webhook, or all of a type.

    A severity that is None means those that no default names, active or not.
    """

    default_id: int
    severity: Severity | None
    webhook_type: str | None = None
    webhook_id: int | None = attrs.field(default=None)
    is_active: bool = True

    @webhook_id.validator
    def _one_target(self, _attribute: object, webhook_id: int | None) -> None:
        if (webhook_id is None) == (self.webhook_type is None):
            raise ValueError("a default has a webhook_id or a webhook_type, and not both")


@attrs.frozen(kw_only=True)
class Target:
    """What routing knows of a webhook. One that it knows nothing of counts as enabled and has no type."""

    webhook_type: str | None
    enabled: bool


@attrs.frozen(kw_only=True)
class Judgement:
    """What one rule says; a default for a type has one for each webhook of the type."""

    kind: Kind
    rule_id: int
    webhook_id: int | None
    verdict: Verdict


def judge_rules(
    alert: Alert, rules: Iterable[Rule], defaults: Sequence[Default], webhooks: Mapping[int, Target]
) -> tuple[Judgement, ...]:
    """Return what each of *rules* and *defaults* says to *alert*: rules first, each by id."""
    by_rule = [
        _judged(Kind.RULE, rule.rule_id, rule.webhook_id, _judge_rule(alert, rule, webhooks))
        for rule in sorted(rules, key=lambda rule: rule.rule_id)
    ]
    needed = all(judgement.verdict is not Verdict.CHOSEN for judgement in by_rule)
    named = {default.severity for default in defaults}
    by_default = [
        judgement
        for default in sorted(defaults, key=lambda default: default.default_id)
        for judgement in _judge_default(
            default, _complaint(alert, default, named=alert.severity in named, needed=needed), webhooks
        )
    ]
    return (*by_rule, *by_default)


def chosen_webhooks(judgements: Iterable[Judgement]) -> tuple[int, ...]:
    """Return the webhooks that get the alert, each once, in order."""
    chosen = {
        judgement.webhook_id
        for judgement in judgements
        if judgement.verdict is Verdict.CHOSEN and judgement.webhook_id is not None
    }
    return tuple(sorted(chosen))


def _judge_rule(alert: Alert, rule: Rule, webhooks: Mapping[int, Target]) -> Verdict:
    if not rule.is_active:
        return Verdict.INACTIVE
    if rule.severity != alert.severity:
        return Verdict.SEVERITY
    if alert.asks_anomaly and rule.anomaly_type not in {None, alert.anomaly_type}:
        return Verdict.ANOMALY_TYPE
    if alert.asks_bottleneck and rule.bottleneck_type not in {None, alert.bottleneck_type}:
        return Verdict.BOTTLENECK_TYPE
    return _enabled(rule.webhook_id, webhooks)


def _complaint(alert: Alert, default: Default, *, named: bool, needed: bool) -> Verdict | None:
    """Return why *default* does not apply to *alert* whatever it points to; None where it does."""
    if not needed:
        return Verdict.NOT_NEEDED
    if not default.is_active:
        return Verdict.INACTIVE
    applies = not named if default.severity is None else default.severity == alert.severity
    return None if applies else Verdict.SEVERITY


def _judge_default(
    default: Default, complaint: Verdict | None, webhooks: Mapping[int, Target]
) -> list[Judgement]:
    def judged(webhook_id: int | None, verdict: Verdict) -> Judgement:
        return _judged(Kind.DEFAULT, default.default_id, webhook_id, verdict)

    if complaint is not None:
        return [judged(default.webhook_id, complaint)]
    if default.webhook_id is not None:
        return [judged(default.webhook_id, _enabled(default.webhook_id, webhooks))]
    of_type = sorted(
        webhook_id for webhook_id, target in webhooks.items() if target.webhook_type == default.webhook_type
    )
    if not of_type:
        return [judged(None, Verdict.NO_WEBHOOK)]
    return [judged(webhook_id, _enabled(webhook_id, webhooks)) for webhook_id in of_type]


def _enabled(webhook_id: int, webhooks: Mapping[int, Target]) -> Verdict:
    target = webhooks.get(webhook_id)
    return Verdict.CHOSEN if target is None or target.enabled else Verdict.DISABLED


def _judged(kind: Kind, rule_id: int, webhook_id: int | None, verdict: Verdict) -> Judgement:
    return Judgement(kind=kind, rule_id=rule_id, webhook_id=webhook_id, verdict=verdict)
