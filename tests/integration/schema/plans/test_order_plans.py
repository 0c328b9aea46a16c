"""What a claim of an ordered webhook touches, whatever waits behind its heads."""

from __future__ import annotations

import pytest

SIZES = [2_000, 20_000, 100_000]
STATISTICS = {"never analysed": None, "analysed": "ANALYZE pggit.alert_delivery_queue"}
ORDERED = 7
OTHERS = 500
"""Rows of each of some webhooks beside it, so that its own are not all that there is."""

CLAIM_PAGES_MAX = 250
CLAIM_PAGES_A_ROW_MAX = 40
KEYS_A_CLAIM_MAX = 256
KEY_PAGES_MAX = 10
"""Of a head that is looked at: a probe for it, the row, and a probe for what of its order is under way."""
KEYLESS_A_CLAIM_MAX = 1024


@pytest.fixture(params=STATISTICS)
def explainer(request, open_explainer, filler):
    explainer = open_explainer()
    filler(explainer, webhooks=6, ready=OTHERS, far=OTHERS, delivered=OTHERS)
    explainer.analyse = STATISTICS[request.param]
    return explainer


def fill(explainer, ordering: str, *rows: tuple[int, str, str]) -> None:
    """Register an ordered webhook, and for each of *rows* insert so many of a key (SQL of n), due at a time."""
    session = explainer.session("side")
    session.execute(
        "INSERT INTO pggit.webhook (webhook_id, name, sealed_url, url_origin, ordering, concurrency, rate_per_s)"
        " VALUES (%s, 'ordered', '', '', %s, 256, 0)",
        (ORDERED, ordering),
    )
    session.execute("SET session_replication_role = replica")
    for count, key, due in rows:
        session.execute(
            "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, ordering_key, next_retry_at)"
            f" SELECT n, {ORDERED}, '{{}}', {key}, {due} FROM generate_series(1, {count}) AS n"
        )
    session.execute("SET session_replication_role = origin")
    if explainer.analyse:
        session.execute(explainer.analyse)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("key", ["NULL::text", "'key ' || n"])
def test_a_backlog_of_one_ordered_webhook_costs_a_claim_nothing(explainer, size, key):
    fill(explainer, "webhook", (size, key, "NULL::timestamptz"))
    explainer.claim({ORDERED: 1}, plain=False)  # The first one of a session reads the catalogue.

    plan = explainer.claim({ORDERED: 1}, plain=False)

    assert plan.root["Actual Rows"] == 2  # the head, and what is told of the webhook
    assert plan.buffers <= CLAIM_PAGES_MAX


@pytest.mark.parametrize("size", SIZES)
def test_followers_of_a_head_that_waits_cost_a_claim_nothing(explainer, size):
    far = "now() + interval '1 h'"
    fill(explainer, "webhook", (1, "NULL::text", far), (size, "NULL::text", "NULL::timestamptz"))
    explainer.claim({ORDERED: 1}, plain=False)

    plan = explainer.claim({ORDERED: 1}, plain=False)

    assert plan.root["Actual Rows"] == 1
    assert plan.buffers <= CLAIM_PAGES_MAX


@pytest.mark.parametrize("size", SIZES)
def test_the_backlog_of_one_key_costs_the_others_nothing(explainer, size):
    far = "now() + interval '1 h'"
    fill(
        explainer, "key",
        (1, "'stuck'", far), (size, "'stuck'", "NULL::timestamptz"),
        (20, "'key ' || n", "NULL::timestamptz"), (3, "NULL::text", "NULL::timestamptz"),
    )  # fmt: skip
    explainer.claim({ORDERED: 32}, plain=False)

    plan = explainer.claim({ORDERED: 32}, plain=False)

    assert plan.root["Actual Rows"] == 23 + 1
    assert plan.buffers <= CLAIM_PAGES_MAX + 23 * CLAIM_PAGES_A_ROW_MAX + 24 * KEY_PAGES_MAX


@pytest.mark.parametrize("keys", [1_000, 10_000])
def test_a_claim_looks_at_a_bounded_number_of_keys(explainer, keys):
    fill(explainer, "key", (keys, "'key ' || n", "now() + interval '1 h'"))
    explainer.claim({ORDERED: 32}, plain=False)

    plan = explainer.claim({ORDERED: 32}, plain=False)

    assert plan.root["Actual Rows"] == 1
    assert plan.buffers <= CLAIM_PAGES_MAX + KEYS_A_CLAIM_MAX * KEY_PAGES_MAX


@pytest.mark.parametrize("size", SIZES)
def test_a_claim_looks_at_a_bounded_number_of_rows_without_a_key(explainer, size):
    fill(explainer, "key", (size, "NULL::text", "now() + interval '1 h'"))
    explainer.claim({ORDERED: 32}, plain=False)

    plan = explainer.claim({ORDERED: 32}, plain=False)

    assert plan.root["Actual Rows"] == 1
    assert plan.buffers <= CLAIM_PAGES_MAX + KEYLESS_A_CLAIM_MAX * 2


@pytest.mark.parametrize(("ordering", "key"), [("webhook", "NULL::text"), ("key", "'key ' || mod(n, 10)")])
def test_a_look_at_the_queue_costs_no_more_for_a_larger_backlog(explainer, ordering, key):
    fill(explainer, ordering, (20_000, key, "NULL::timestamptz"))
    explainer.explain("claim", "claim", "discover", horizon_seconds=5)

    plan = explainer.explain("claim", "claim", "discover", horizon_seconds=5)

    assert plan.buffers <= 2 * CLAIM_PAGES_MAX + 10 * KEY_PAGES_MAX
