"""The plans of the hot statements on a filled queue, under the settings of the lanes that run them.

What is asserted is what was touched: pages and rows, which do not depend on who else uses the machine. The same
bounds hold for two thousand rows of each kind and for a million (the long tier), so nothing grows with a backlog.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import product

import pytest

DEAD, RETRYING, IDLE = 1, 2, 3  # The webhooks that conftest fills.
CLAIM_INDEX, PRIMARY_KEY = "alert_delivery_queue_claim_idx", "alert_delivery_queue_pkey"

# Of the short tier the least and the most; of the long one, what DESIGN 12 speaks of.
SIZES = [
    pytest.param({"webhooks": 100, "ready": 2_000, "far": 2_000, "delivered": 2_000}, id="2,000"),
    pytest.param({"webhooks": 1_000, "ready": 20_000, "far": 20_000, "delivered": 20_000}, id="20,000"),
    pytest.param(
        {"webhooks": 10_000, "ready": 1_000_000, "far": 1_000_000, "delivered": 100_000},
        id="1,000,000",
        marks=pytest.mark.long,
    ),
]
STATISTICS = {
    "never analysed": (None, None),
    "analysed when it was empty": ("VACUUM ANALYZE", None),
    "analysed": (None, "ANALYZE"),
    "analysed when all was delivered": ("all delivered", None),
}
LEASED = 256
TOKEN = 42

CLAIM_PAGES_MAX = 100
"""Of one row; the depth of three indexes, and a probe of each priority."""
CLAIM_PAGES_A_ROW_MAX = 30
HELD_PAGES_MAX = 40
"""Of a claim that gets nothing."""
SETTLE_PAGES_MAX = 150
SETTLE_PAGES_A_ROW_MAX = 70
PROBE_PAGES_MAX = 8
"""Of a webhook that is idle, busy or unknown."""


@pytest.fixture(scope="module", params=SIZES)
def filled(request, open_explainer, filler):
    """A queue of one size, whose statistics are as its loading left them: there are none."""
    explainer = open_explainer()
    filler(explainer, **request.param)
    lease(explainer)
    return explainer


def lease(explainer) -> None:
    explainer.session("claim").execute(
        "UPDATE pggit.alert_delivery_queue SET lease_token = %s, lease_expires_at = now() + interval '1 h',"
        " leased_by = 'a worker' WHERE delivery_id IN (SELECT delivery_id FROM pggit.alert_delivery_queue"
        " WHERE webhook_id = %s AND ready_at <= now() ORDER BY ready_at, delivery_id LIMIT %s)",
        (TOKEN, DEAD, LEASED),
    )


def leased(explainer, count: int) -> list[int]:
    rows = explainer.session("side").execute(
        "SELECT delivery_id FROM pggit.alert_delivery_queue WHERE webhook_id = %s AND lease_token = %s LIMIT %s",
        (DEAD, TOKEN, count),
    )
    return [row[0] for row in rows]


def registered(explainer) -> int:
    row = explainer.session("side").execute("SELECT count(*) FROM pggit.webhook").fetchone()
    return int(row[0])


def check_claims(explainer) -> None:
    fresh = explainer.claim({RETRYING: 32})
    many = explainer.claim({DEAD: 32})
    several = explainer.claim({DEAD: 32, RETRYING: 32, IDLE: 32})

    for plan in (fresh, many, several):
        assert plan.reads() == {CLAIM_INDEX, PRIMARY_KEY}
        assert plan.reads("webhook") == {"webhook_pkey"}
        assert plan.reads("webhook_limit") == {"webhook_limit_pkey"}
    assert fresh.buffers <= CLAIM_PAGES_MAX
    assert fresh.rows_removed() == 0
    # Leased rows are stepped over, and read no more than once.
    assert many.rows_removed() <= LEASED
    assert many.buffers <= CLAIM_PAGES_MAX + LEASED + 32 * CLAIM_PAGES_A_ROW_MAX
    assert several.buffers <= 2 * CLAIM_PAGES_MAX + LEASED + 34 * CLAIM_PAGES_A_ROW_MAX


@contextmanager
def limited(explainer, webhook_id: int, **columns: str):
    """Let a webhook have limits while the block lasts, whose columns are given as SQL."""
    session = explainer.session("side")
    words = ", ".join(f"{name} = {value}" for name, value in columns.items() if name != "rate_per_s")
    rate = columns.get("rate_per_s", "100")
    session.execute(f"UPDATE pggit.webhook SET rate_per_s = {rate} WHERE webhook_id = {webhook_id}".encode())
    if words:
        session.execute(f"UPDATE pggit.webhook_limit SET {words} WHERE webhook_id = {webhook_id}".encode())
    yield
    session.execute(f"UPDATE pggit.webhook SET rate_per_s = 0 WHERE webhook_id = {webhook_id}".encode())
    session.execute(
        "UPDATE pggit.webhook_limit SET bucket_tat = NULL, breaker_until = NULL, probe_until = NULL,"
        f" recovering_since = NULL WHERE webhook_id = {webhook_id}".encode()
    )


def check_claims_of_limited_webhooks(explainer) -> None:
    """With all that is ready behind them: a limit must not be found out by reading what it holds back."""
    explainer.claim({IDLE: 1}, plain=False)  # The first one of a session reads the catalogue.
    with limited(explainer, DEAD, rate_per_s="0", breaker_until="now() + interval '1 min'"):
        for plain in (True, False):
            assert explainer.claim({DEAD: 32}, plain=plain).buffers <= HELD_PAGES_MAX
    with limited(explainer, DEAD, bucket_tat="now() + interval '1 min'"):
        for plain in (True, False):
            assert explainer.claim({DEAD: 32}, plain=plain).buffers <= HELD_PAGES_MAX
    with limited(explainer, DEAD, rate_per_s="0", breaker_until="now() - interval '1 s'"):
        probe = explainer.claim({DEAD: 32}, plain=False)
    with limited(explainer, DEAD):
        burst = explainer.claim({DEAD: 32, IDLE: 1}, plain=False)
    with limited(explainer, RETRYING, recovering_since="now()"):
        fresh = explainer.claim({RETRYING: 32}, plain=False)

    for plan in (probe, burst, fresh):
        assert plan.reads() == {CLAIM_INDEX, PRIMARY_KEY}
        assert plan.reads("webhook") == {"webhook_pkey"}
        assert plan.reads("webhook_limit") == {"webhook_limit_pkey"}
    assert probe.buffers <= CLAIM_PAGES_MAX + LEASED
    assert burst.buffers <= 2 * CLAIM_PAGES_MAX + LEASED + 21 * CLAIM_PAGES_A_ROW_MAX
    assert fresh.buffers <= CLAIM_PAGES_MAX


def check_settles(explainer) -> None:
    explainer.settle(TOKEN, leased(explainer, 1))  # The first one of a session reads the catalogue.
    explainer.settle(TOKEN, leased(explainer, 1), answers=False)
    for count, answers in product((1, 32, LEASED), (True, False)):
        plan = explainer.settle(TOKEN, leased(explainer, count), answers=answers)

        assert plan.reads() == {PRIMARY_KEY}
        assert plan.reads("webhook") <= {"webhook_pkey"}
        assert plan.buffers <= SETTLE_PAGES_MAX + count * SETTLE_PAGES_A_ROW_MAX


def check_what_the_claimer_asks_now_and_then(explainer) -> None:
    discover = explainer.explain("claim", "claim", "discover", horizon_seconds=5)
    adopt = explainer.explain("claim", "claim", "adopt_unknown")

    assert discover.reads() == {CLAIM_INDEX}
    assert discover.rows_removed() <= LEASED * 1.05  # PostgreSQL gives it a loop, and rounds.
    assert discover.buffers <= registered(explainer) * PROBE_PAGES_MAX + LEASED + CLAIM_PAGES_MAX
    assert adopt.reads() == {CLAIM_INDEX}
    assert adopt.buffers <= 3 * PROBE_PAGES_MAX * 3  # Three ids have rows that are not done.


def check_a_look_past_blocked_webhooks(explainer) -> None:
    """Of those whose block outlasts the horizon nothing is asked but their limit row."""
    session = explainer.session("side")
    session.execute(
        "UPDATE pggit.webhook_limit SET breaker_until = now() + interval '5 min' WHERE webhook_id > %s",
        (RETRYING,),
    )
    discover = explainer.explain("claim", "claim", "discover", horizon_seconds=5)
    (pages,) = session.execute("SELECT pg_relation_size('pggit.webhook_limit') / 8192").fetchone()
    session.execute("UPDATE pggit.webhook_limit SET breaker_until = NULL")

    assert discover.reads() == {CLAIM_INDEX}
    assert discover.buffers <= pages + registered(explainer) * 3 + LEASED + CLAIM_PAGES_MAX


def check_releases(explainer) -> None:
    ids = leased(explainer, 32)
    bound = {"delivery_ids": ids, "lease_tokens": [TOKEN] * len(ids)}
    for lane, subject, name in (("side", "claim", "release"), ("settle", "settle", "unsettled")):
        plan = explainer.explain(lane, subject, name, **bound)

        assert plan.reads() == {PRIMARY_KEY}
        assert plan.buffers <= len(ids) * CLAIM_PAGES_A_ROW_MAX
    body = explainer.explain("side", "claim", "body", delivery_id=ids[0], lease_token=TOKEN)
    assert body.reads() == {PRIMARY_KEY}
    assert body.buffers <= PROBE_PAGES_MAX


def check_figures(explainer) -> None:
    rows_max = 200  # A small cap, so that the least of the queues is longer.
    figures = explainer.explain("side", "workers", "queue_figures", rows_max=rows_max)
    side = explainer.explain("side", "workers", "side_figures", rows_max=rows_max, recovery_seconds=30)

    assert figures.reads() == {CLAIM_INDEX}
    assert figures.buffers <= rows_max * 2
    assert "Seq Scan" not in side.reads()
    limit_pages = (
        explainer.session("side").execute("SELECT pg_relation_size('pggit.webhook_limit') / 8192").fetchone()
    )
    webhook_pages = (
        explainer.session("side").execute("SELECT pg_relation_size('pggit.webhook') / 8192").fetchone()
    )
    # Of the limits, once for breakers and once for unknown ids.
    assert side.buffers <= 2 * limit_pages[0] + webhook_pages[0] + CLAIM_PAGES_MAX


CHECKS = {
    "claim": check_claims,
    "claim of limited": check_claims_of_limited_webhooks,
    "look past blocked": check_a_look_past_blocked_webhooks,
    "settle": check_settles,
    "look": check_what_the_claimer_asks_now_and_then,
    "release": check_releases,
    "figures": check_figures,
}


@pytest.mark.parametrize("check", CHECKS)
def test_a_hot_statement_goes_by_an_index_and_touches_no_more_for_a_larger_backlog(filled, check):
    """After a bulk load, before anybody analysed."""
    CHECKS[check](filled)


@pytest.fixture(scope="module", params=STATISTICS)
def stale(request, open_explainer, filler):
    """A queue whose statistics are of another time."""
    before, after = STATISTICS[request.param]
    explainer = open_explainer()
    session = explainer.session("side")
    if before == "all delivered":
        session.execute(
            "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, delivery_status)"
            " SELECT n, 3, '{}', 'delivered' FROM generate_series(1, 5000) AS n"
        )
        session.execute("VACUUM ANALYZE")
    elif before:
        session.execute(before)
    filler(explainer, webhooks=1_000, ready=20_000, far=20_000, delivered=20_000)
    lease(explainer)
    if after:
        session.execute(after)
    return explainer


@pytest.mark.parametrize("check", CHECKS)
def test_no_state_of_the_statistics_turns_a_hot_statement_to_a_scan(stale, check):
    CHECKS[check](stale)


@pytest.mark.parametrize("priorities", [2, 20])
def test_each_priority_present_costs_a_claim_a_probe_and_no_more(open_explainer, filler, priorities):
    explainer = open_explainer()
    filler(explainer, webhooks=10, ready=100, far=5_000, delivered=100)
    explainer.session("claim").execute(
        "UPDATE pggit.alert_delivery_queue SET priority = mod(delivery_id, %s) WHERE webhook_id = %s",
        (priorities, RETRYING),
    )
    explainer.session("side").execute("VACUUM pggit.alert_delivery_queue")

    plan = explainer.claim({RETRYING: 32})
    assert plan.rows_removed() == 0
    assert plan.buffers <= CLAIM_PAGES_MAX + priorities * 4 * PROBE_PAGES_MAX
