"""Routing: properties of the pure judge, and that the database's judges the same."""

from __future__ import annotations

import json
from collections.abc import Sequence

import attrs
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pggit_reactor.core.routing import (
    Alert,
    Default,
    Kind,
    Rule,
    Severity,
    Target,
    Verdict,
    chosen_webhooks,
    judge_rules,
)

IDS = st.integers(1, 6)
TYPES = st.sampled_from(["slack", "email"])
KINDS = st.none() | st.sampled_from(["spike", "drift"])
SEVERITIES = st.sampled_from(Severity)


@attrs.frozen(kw_only=True)
class World:
    alert: Alert
    rules: Sequence[Rule]
    defaults: Sequence[Default]
    webhooks: dict[int, Target]


@st.composite
def worlds(draw) -> World:
    alert = Alert(severity=draw(SEVERITIES), anomaly_type=draw(KINDS), bottleneck_type=draw(KINDS))
    rules = [
        Rule(
            rule_id=rule_id,
            severity=draw(SEVERITIES),
            anomaly_type=draw(KINDS),
            bottleneck_type=draw(KINDS),
            webhook_id=draw(IDS),
            is_active=draw(st.booleans()),
        )
        for rule_id in range(1, 1 + draw(st.integers(0, 4)))
    ]
    targets = draw(st.lists(st.tuples(st.none() | SEVERITIES, TYPES | IDS), max_size=5, unique=True))
    defaults = [
        Default(
            default_id=default_id,
            severity=severity,
            webhook_type=target if isinstance(target, str) else None,
            webhook_id=target if isinstance(target, int) else None,
            is_active=draw(st.booleans()),
        )
        for default_id, (severity, target) in enumerate(targets, start=1)
    ]
    known = st.builds(Target, webhook_type=st.none() | TYPES, enabled=st.booleans())
    return World(
        alert=alert, rules=rules, defaults=defaults, webhooks=draw(st.dictionaries(IDS, known, max_size=5))
    )


def judged(world: World):
    return judge_rules(world.alert, world.rules, world.defaults, world.webhooks)


@given(world=worlds())
def test_every_rule_and_default_is_judged(world):
    named = {(judgement.kind, judgement.rule_id) for judgement in judged(world)}

    assert named == {(Kind.RULE, rule.rule_id) for rule in world.rules} | {
        (Kind.DEFAULT, default.default_id) for default in world.defaults
    }


@given(world=worlds())
def test_no_disabled_webhook_is_chosen_and_none_twice(world):
    chosen = chosen_webhooks(judged(world))

    assert sorted(set(chosen)) == list(chosen)
    assert all(world.webhooks[one].enabled for one in chosen if one in world.webhooks)


@given(world=worlds())
def test_rules_and_defaults_never_serve_the_same_alert(world):
    kinds = {judgement.kind for judgement in judged(world) if judgement.verdict is Verdict.CHOSEN}

    assert len(kinds) <= 1


@given(world=worlds())
def test_a_rule_without_types_for_the_severity_and_an_unknown_webhook_is_always_chosen(world):
    catch_all = Rule(rule_id=99, severity=world.alert.severity, webhook_id=99)
    world = attrs.evolve(world, rules=[*world.rules, catch_all])

    assert 99 in chosen_webhooks(judged(world))


def test_a_default_points_to_one_thing():
    with pytest.raises(ValueError, match="not both"):
        Default(default_id=1, severity=None, webhook_type="slack", webhook_id=1)


@given(world=worlds(), in_phase7=st.booleans())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_the_database_judges_the_same(sql, world, in_phase7):
    with sql.transaction(force_rollback=True):
        write(sql, world, in_phase7=in_phase7)
        rows = sql.execute(
            "SELECT kind, rule_id, webhook_id, verdict FROM pggit.judge_rules(%s, %s, %s)",
            (world.alert.severity, world.alert.anomaly_type, world.alert.bottleneck_type),
        ).fetchall()

    assert rows == [attrs.astuple(judgement) for judgement in judged(world)]


@pytest.fixture
def sql(reactor_database):
    with psycopg.connect(reactor_database.dsn.reveal(), autocommit=True) as connection:
        yield connection


def write(sql: psycopg.Connection, world: World, *, in_phase7: bool) -> None:
    """Put *world* into the database; the webhooks into phase 7's table, or into the registry."""
    sql.execute("DELETE FROM pggit.routing_default")
    if in_phase7:
        sql.execute(
            "CREATE TABLE pggit.alert_notification_webhooks (webhook_id bigint, webhook_type text, enabled boolean)"
        )
    for rule in world.rules:
        sql.execute(
            "INSERT INTO pggit.alert_routing_rules"
            " (rule_id, severity_level, webhook_id, anomaly_type, bottleneck_type, is_active)"
            " VALUES (%s, %s, %s, %s, %s, %s)",
            attrs.astuple(rule),
        )
    for default in world.defaults:
        sql.execute(
            "INSERT INTO pggit.routing_default (default_id, severity_level, webhook_type, webhook_id, is_active)"
            " VALUES (%s, %s, %s, %s, %s)",
            attrs.astuple(default),
        )
    for webhook_id, target in world.webhooks.items():
        if in_phase7:
            sql.execute(
                "INSERT INTO pggit.alert_notification_webhooks VALUES (%s, %s, %s)",
                (webhook_id, target.webhook_type, target.enabled),
            )
        else:
            labels = {} if target.webhook_type is None else {"type": target.webhook_type}
            sql.execute(
                "INSERT INTO pggit.webhook (webhook_id, name, sealed_url, url_origin, state, labels)"
                " VALUES (%s, %s, '', '', %s, %s)",
                (
                    webhook_id,
                    f"w{webhook_id}",
                    "active" if target.enabled else "disabled",
                    json.dumps(labels),
                ),
            )
