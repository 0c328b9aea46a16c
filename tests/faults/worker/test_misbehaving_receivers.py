"""A receiver of each misbehaviour beside a good one, in one worker: the good one does not notice."""

from __future__ import annotations

import ssl

import pytest

from pggit_reactor.testing.receiver import (
    Certificate,
    Greeting,
    answer,
    cut,
    drip,
    early,
    endless,
    hang,
    hang_up,
    open_receiver,
    raw,
    redirect,
)

GOOD_ROWS = 40
BAD_ROWS = 3

ANSWERS = {
    "a black hole": hang(),
    "slow loris in the head": drip(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 500, gap_seconds=0.05),
    "slow loris in the body": drip(
        b"x" * 500, gap_seconds=0.05, prefix=b"HTTP/1.1 500 No\r\nContent-Length: 500\r\n\r\n"
    ),
    "an endless head": endless(b"HTTP/1.1 200 OK\r\n", b"X-More: x\r\n" * 50),
    "an endless field": endless(b"HTTP/1.1 200 OK\r\nX-More: ", b"x" * 4096),
    "an endless body": endless(b"HTTP/1.1 500 No\r\nContent-Length: 99999999999\r\n\r\n", b"x" * 65536),
    "endless chunks": endless(
        b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n", b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n"
    ),
    "endless interim answers": endless(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 20),
    "a reset instead of an answer": cut(),
    "a reset before the body is read": early(cut()),
    "a close instead of an answer": hang_up(),
    "a redirect to itself": redirect("/"),
    "a redirect to the metadata service": redirect("https://169.254.169.254/"),
    "garbage": raw(bytes(range(256)) * 8),
    "another protocol": raw(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "half a head": raw(b"HTTP/1.1 200 O"),
}
CONNECTIONS = [greeting for greeting in Greeting if greeting is not Greeting.SERVE]
CERTIFICATES = [certificate for certificate in Certificate if certificate is not Certificate.GOOD]


async def run_beside_a_good_one(rig, bad_url: str) -> list[int]:
    """Deliver to both; return the bad one's rows, which have come to their end."""
    # Its own patience, so that a busy machine is not taken for harm.
    await rig.never_open_breakers()
    good = await rig.add_webhook("/good", concurrency=8, attempt_timeout="10 s")
    bad = await rig.add_webhook(url=bad_url, concurrency=4)
    async with rig.worker(
        DELIVERY_TIMEOUT_SECONDS=0.4, DELIVERY_BACKOFF_BASE_SECONDS=0.02, WORKER_LEASE_SECONDS=4
    ) as running:
        rows = await insert(rig, bad)
        passing = await rig.insert(good, GOOD_ROWS)
        for delivery_id in passing:
            await rig.until_status(delivery_id, "delivered", seconds=10)
        for delivery_id in rows:
            await rig.until_status(delivery_id, "failed", seconds=15)
        assert running.metric("pggit_reactor_attempts_in_flight") == 0
        for loop in ("claimer", "settler", "listener"):
            assert running.metric("pggit_reactor_loop_restarts_total", {"loop": loop}) == 0
    return rows


async def insert(rig, webhook_id: int) -> list[int]:
    rows = await rig.database.fetch(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, max_retries)"
        " SELECT n, %s, '{}', 1 FROM generate_series(1, %s) AS n RETURNING delivery_id",
        (webhook_id, BAD_ROWS),
    )
    return [row[0] for row in rows]


async def assert_exhausted(rig, rows: list[int]) -> None:
    for row in rows:
        assert await rig.row(row, "failed_reason", "retry_count", "attempt_count") == ("exhausted", 1, 2)
        (error,) = await rig.row(row, "last_error")
        assert error
    # The good ones went at their first attempt: nothing of the bad one's cost them any.
    assert (
        await rig.database.fetch_value(
            "SELECT max(attempt_count) FROM pggit.alert_delivery_queue WHERE delivery_status = 'delivered'"
        )
        == 1
    )
    await rig.assert_books_agree()


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_of_each_evil_is_retried_and_exhausted_and_a_good_receiver_unharmed(rig, name: str):
    async with open_receiver(authority=rig.receiver.authority) as bad:
        bad.default = ANSWERS[name]
        rows = await run_beside_a_good_one(rig, bad.url("/"))
    await assert_exhausted(rig, rows)


@pytest.mark.parametrize("greeting", CONNECTIONS)
async def test_a_connection_of_each_evil_is_retried_and_exhausted(rig, greeting: Greeting):
    async with open_receiver(authority=rig.receiver.authority) as bad:
        bad.greeting = greeting
        rows = await run_beside_a_good_one(rig, bad.url("/"))
    await assert_exhausted(rig, rows)


@pytest.mark.parametrize("certificate", CERTIFICATES)
async def test_a_certificate_of_each_evil_is_retried_and_exhausted(rig, certificate: Certificate):
    async with open_receiver(authority=rig.receiver.authority, certificate=certificate) as bad:
        rows = await run_beside_a_good_one(rig, bad.url("/"))
        assert bad.requests == []
    await assert_exhausted(rig, rows)


async def test_a_receiver_that_knows_only_old_tls_is_retried_and_exhausted(rig):
    async with open_receiver(authority=rig.receiver.authority) as bad:
        bad.tls_context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        bad.greeting = Greeting.OLD_VERSION
        rows = await run_beside_a_good_one(rig, bad.url("/"))
    await assert_exhausted(rig, rows)


async def test_nobody_at_the_port_is_retried_and_exhausted(rig):
    async with open_receiver(authority=rig.receiver.authority) as bad:
        url = bad.url("/")
    rows = await run_beside_a_good_one(rig, url)
    await assert_exhausted(rig, rows)


async def test_a_name_that_nothing_knows_is_retried_and_exhausted(rig):
    rows = await run_beside_a_good_one(rig, "https://no-such-name.invalid/")
    await assert_exhausted(rig, rows)


async def test_a_thousand_rows_for_a_black_hole_delay_the_others_by_nothing(rig):
    """Only what can be sent now is claimed: the black hole holds its own slots and no more."""
    good, bad = (
        await rig.add_webhook("/good", attempt_timeout="10 s"),
        await rig.add_webhook("/bad", concurrency=16),
    )
    rig.receiver.script("/bad", *[hang()] * 1000)
    async with rig.worker(WORKER_ATTEMPTS_MAX=64) as running:
        await rig.insert(bad, 1000)
        await rig.receiver.wait_for(16, path="/bad")
        for _ in range(20):
            (delivery_id,) = await rig.insert(good)
            await rig.until_status(delivery_id, "delivered", seconds=2)
            held = await rig.database.fetch_value(
                "SELECT count(*) FROM pggit.alert_delivery_queue WHERE webhook_id = %s AND lease_token IS NOT NULL",
                (bad,),
            )
            assert held <= 16
        assert running.metric("pggit_reactor_attempts_in_flight") <= 17


async def test_evil_of_all_kinds_at_once_leaves_a_good_receiver_its_pace(rig):
    await rig.never_open_breakers()
    good = await rig.add_webhook("/good", attempt_timeout="10 s")
    rows = []
    for number, behaviour in enumerate(ANSWERS.values()):
        rig.receiver.script(f"/bad{number}", *[behaviour] * (2 * BAD_ROWS))
        rows += await insert(rig, await rig.add_webhook(f"/bad{number}", concurrency=4))
    async with rig.worker(DELIVERY_BACKOFF_BASE_SECONDS=0.02) as running:
        for _ in range(20):
            (delivery_id,) = await rig.insert(good)
            await rig.until_status(delivery_id, "delivered", seconds=5)
        for row in rows:
            await rig.until(
                "SELECT ready_at IS NULL FROM pggit.alert_delivery_queue WHERE delivery_id = %s", row
            )
        assert running.worker.health.health().ok


async def test_a_receiver_that_recovers_is_delivered_to(rig):
    webhook_id = await rig.add_webhook()
    rig.receiver.script("/hook", cut(), answer(503), hang_up())
    async with rig.worker():
        (delivery_id,) = await rig.insert(webhook_id)
        await rig.until_status(delivery_id, "delivered")

    assert (await rig.row(delivery_id, "failed_reason", "last_error")) == (None, None)
