"""One attempt over real TLS: what goes out, what comes back, and which connection it takes."""

from __future__ import annotations

import sys
import textwrap

import pytest
import trio

from pggit_reactor.core.model import Answer, AttemptFailure, FailureKind, SignatureScope
from pggit_reactor.core.secret import Secret
from pggit_reactor.core.signing import verify
from pggit_reactor.delivery.connections import PoolLimits
from pggit_reactor.delivery.sender import send_attempt, user_agent
from pggit_reactor.testing.receiver import Then, answer, gated, hang, open_receiver, raw
from pggit_reactor.testing.senders import SECRET, make_webhook, open_sender

UID = "01234567-89ab-8cde-8123-456789abcdef"
NOW = 1_800_000_000.9
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def send(sender, webhook, body=b"{}", **more):
    return await send_attempt(sender.transport, webhook, uid=UID, body=body, wall_now=NOW, **more)


async def test_the_octets_sent_are_the_octets_given_and_both_signatures_are_right(receiver, sender):
    body = '{"b": 1,  "a": "\u00e9\u2028",\n"c": 1e400}'.encode()

    result = await send(sender, make_webhook(receiver.url("/hook?token=t")), body)

    (request,) = receiver.requests
    assert isinstance(result.outcome, Answer)
    assert request.body == body
    assert (request.method, request.path, request.query) == ("POST", "/hook", "token=t")
    verify(body, dict(request.headers), [SECRET], now=NOW)
    for family in ("webhook-", "x-pggit-"):
        only = {name: value for name, value in request.headers if name.lower().startswith(family)}
        verify(body, only, [SECRET], now=NOW)


async def test_the_head_says_what_it_must_and_each_thing_once(receiver, sender):
    webhook = make_webhook(receiver.url("/hook"), headers=(("X-Tenant", "of the webhook"),))

    await send(
        sender,
        webhook,
        b"[1]",
        extra_headers='{"x-tenant": "of the row", "X-Row": "caf\\u00e9"}',
        event_type="deploy.finished",
        traceparent=TRACEPARENT,
    )

    (request,) = receiver.requests
    names = [name.lower() for name, _ in request.headers]
    assert len(set(names)) == len(names)
    assert dict(request.headers) == {
        "Host": f"127.0.0.1:{receiver.port}",
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        "User-Agent": user_agent(),
        "webhook-id": UID,
        "webhook-timestamp": "1800000000",
        "webhook-signature": request.header("webhook-signature"),
        "X-pgGit-Delivery-ID": UID,
        "X-pgGit-Timestamp": "2027-01-15T08:00:00Z",
        "X-pgGit-Signature": request.header("x-pggit-signature"),
        "X-Tenant": "of the webhook",
        "X-Row": "caf\u00e9",
        "X-pgGit-Event-Type": "deploy.finished",
        "traceparent": TRACEPARENT,
        "Content-Length": "3",
    }


async def test_the_user_agent_names_us_and_our_version():
    assert user_agent().startswith("pggit-reactor/0.")


async def test_during_a_rotation_each_valid_secret_signs(receiver, sender):
    older = "an older secret of 24 octets or more"
    webhook = make_webhook(receiver.url(), secrets=(Secret(SECRET), Secret(older)))

    await send(sender, webhook, b"{}")

    headers = dict(receiver.requests[0].headers)
    verify(b"{}", headers, SECRET, now=NOW)
    verify(b"{}", headers, older, now=NOW)


async def test_a_webhook_may_ask_for_the_weak_signature_over_the_body_alone(receiver, sender):
    await send(sender, make_webhook(receiver.url(), signature_scope=SignatureScope.BODY_ONLY), b"{}")

    assert " " not in receiver.requests[0].header("x-pggit-signature")


@pytest.mark.parametrize(
    "traceparent",
    [
        "nonsense",
        TRACEPARENT + "\r\nX: y",
        TRACEPARENT.upper(),
        TRACEPARENT.replace("00-", "01-", 1),
        f"00-{'0' * 32}-{'b' * 16}-01",
    ],
)
async def test_a_malformed_traceparent_or_event_type_is_left_out_and_costs_no_alert(
    receiver, sender, traceparent
):
    result = await send(
        sender, make_webhook(receiver.url()), traceparent=traceparent, event_type="two words\r\n"
    )

    assert isinstance(result.outcome, Answer)
    assert receiver.requests[0].header("traceparent") is None
    assert receiver.requests[0].header("x-pggit-event-type") is None


REFUSED = {
    "bad row header": ({}, {"extra_headers": '{"Host": "elsewhere"}'}, FailureKind.BAD_HEADERS),
    "row header with a line end": ({}, {"extra_headers": '{"X": "a\\r\\nY: b"}'}, FailureKind.BAD_HEADERS),
    "row headers that are no object": ({}, {"extra_headers": "[1]"}, FailureKind.BAD_HEADERS),
    "webhook header with a line end": ({"headers": (("X", "a\r\nY: b"),)}, {}, FailureKind.BAD_HEADERS),
    "webhook header outside Latin-1": ({"headers": (("X", "\u2028"),)}, {}, FailureKind.BAD_HEADERS),
    "body too large": ({"max_body_bytes": 1}, {}, FailureKind.TOO_LARGE),
    "URL with another scheme": ({"url": Secret("http://127.0.0.1/s3cret")}, {}, FailureKind.URL_REFUSED),
    "URL to a forbidden address": ({"url": Secret("https://10.0.0.1/s3cret")}, {}, FailureKind.URL_REFUSED),
    "URL to the metadata service": (
        {"url": Secret("https://169.254.169.254/s3cret")},
        {},
        FailureKind.URL_REFUSED,
    ),
    "a secret that cannot sign": ({"secrets": (Secret("s3cret"),)}, {}, FailureKind.INTERNAL),
}


@pytest.mark.parametrize(("changes", "more", "kind"), REFUSED.values(), ids=REFUSED.keys())
async def test_what_may_not_be_sent_is_refused_before_the_network(receiver, sender, changes, more, kind):
    result = await send(sender, make_webhook(receiver.url("/s3cret"), **changes), **more)

    assert isinstance(result.outcome, AttemptFailure)
    assert result.outcome.kind is kind
    assert "s3cret" not in result.outcome.detail
    assert receiver.connection_count == 0


async def test_no_failure_tells_the_path_of_the_url(receiver, sender):
    receiver.script("/s3cret", hang(), raw(b"nonsense"), raw(then=Then.RESET))

    for _ in range(3):
        result = await sender.post("/s3cret", deadline_seconds=0.2)

        assert isinstance(result.outcome, AttemptFailure)
        assert "s3cret" not in repr(result)


async def test_a_fresh_attempt_passes_through_all_phases_and_tells_each(receiver, sender):
    told = []

    result = await sender.post(on_phase=lambda name, seconds: told.append((name, seconds)))

    phases = result.phases
    assert [name for name, _ in told] == ["resolved", "connected", "secured", "sent", "answered"]
    assert [seconds for _, seconds in told] == [
        phases.resolved,
        phases.connected,
        phases.secured,
        phases.sent,
        phases.answered,
    ]
    assert sorted(told, key=lambda pair: pair[1]) == told
    assert result.elapsed_seconds >= phases.answered > 0
    assert result.address == "127.0.0.1"


async def test_the_next_attempt_takes_the_same_connection(receiver, sender):
    await sender.post()

    result = await sender.post()

    assert (result.reused, result.resent) == (True, False)
    assert result.phases.secured is None
    assert receiver.connection_count == 1
    assert result.address == "127.0.0.1"


async def test_webhooks_share_no_connection_and_an_url_that_changed_takes_another(receiver, sender):
    await sender.post(key=1)
    await sender.post(key=2)
    other_host = await sender.post(key=1, host="localhost")

    assert not other_host.reused
    assert receiver.connection_count == 3


async def test_attempts_at_once_take_connections_of_their_own_and_leave_no_more_than_the_limit(receiver):
    gate = trio.Event()
    receiver.script("/", *[gated(gate, answer(200))] * 5)
    async with open_sender(receiver, limits=PoolLimits(idle_per_key_max=2)) as sender:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(sender.post)
            await receiver.wait_for(5)
            gate.set()

        assert sender.transport.idle_connections == 2
        await receiver.wait_open(2)


async def test_idle_connections_are_bounded_over_all_webhooks_and_the_oldest_goes(receiver):
    async with open_sender(receiver, limits=PoolLimits(idle_max=2)) as sender:
        for key in (1, 2, 3):
            await sender.post(key=key)

        assert sender.transport.idle_connections == 2
        assert not (await sender.post(key=1)).reused
        assert (await sender.post(key=3)).reused


async def test_a_connection_idle_for_too_long_is_closed_by_itself(receiver):
    async with open_sender(receiver, limits=PoolLimits(idle_seconds_max=0.05)) as sender:
        await sender.post()

        with trio.fail_after(5):
            await receiver.wait_open(0)
        assert sender.transport.idle_connections == 0


async def test_a_connection_that_grew_too_old_is_not_kept(receiver):
    async with open_sender(receiver, limits=PoolLimits(age_seconds_max=0)) as sender:
        await sender.post()

        assert sender.transport.idle_connections == 0


async def test_the_end_of_the_block_closes_what_is_idle(receiver):
    async with open_sender(receiver) as sender:
        await sender.post()
        assert receiver.open_count == 1

    with trio.fail_after(5):
        await receiver.wait_open(0)


@pytest.mark.parametrize("status", [200, 204, 302, 404, 410, 429, 500, 503, 999])
async def test_any_answer_is_reported_as_it_is_and_keeps_the_connection(receiver, sender, status):
    receiver.script("/", answer(status, [("Retry-After", "120")]))

    result = await sender.post()

    assert result.outcome.status == status
    assert result.outcome.retry_after == "120"
    assert sender.transport.idle_connections == 1


async def test_a_receiver_that_says_close_is_not_met_on_that_connection_again(receiver, sender):
    receiver.script("/", answer(200, [("Connection", "close")], then=Then.HANG))

    await sender.post()

    assert sender.transport.idle_connections == 0
    assert not (await sender.post()).reused


@pytest.mark.parametrize("size", [0, 1, 16_383, 16_384, 16_385, 65_536, 65_537, 1_048_576, 5_000_000])
async def test_bodies_of_any_size_arrive_whole(receiver, sender, size):
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)

    results = [await sender.post("/", body), await sender.post("/", body)]

    assert [result.outcome.status for result in results] == [200, 200]
    assert all(request.body == body for request in receiver.requests)
    assert results[1].reused


async def test_a_receiver_in_another_program_is_trusted_by_its_file(receiver):
    """The worker is such a program: nothing but a file and a URL passes between the two."""
    program = textwrap.dedent(
        """
        import sys, trio
        from pggit_reactor.core.url_policy import EgressRules, parse_target
        from pggit_reactor.delivery.sender import Route, open_transport

        async def main(url):
            rules = EgressRules.parse(unsafe_allow="127.0.0.0/8:*")
            async with open_transport(rules) as transport:
                target = parse_target(url, rules)
                route = Route(owner=1, target=target)
                result = await transport.post(route=route, headers=(), body=b"hi", deadline_seconds=5)
                sys.stdout.write(str(result.outcome.status))

        trio.run(main, sys.argv[1])
        """
    )
    environ = {"SSL_CERT_FILE": str(receiver.ca_file), "HTTPS_PROXY": "http://127.0.0.1:1"}

    done = await trio.run_process(
        [sys.executable, "-c", program, receiver.url("/other")], env=environ, capture_stdout=True
    )

    assert done.stdout == b"200"
    assert receiver.requests[0].body == b"hi"


async def test_names_are_sent_as_sni_and_addresses_are_not(receiver, sender):
    seen = []
    receiver.tls_context.sni_callback = lambda _socket, name, _context: seen.append(name)

    await sender.post(host="127.0.0.1")
    await sender.post(host="localhost")

    assert seen == [None, "localhost"]


async def test_ipv6_literals_work(sender):
    async with open_receiver(host="::1") as receiver, open_sender(receiver) as sender:
        result = await sender.post(host="::1")

    assert isinstance(result.outcome, Answer)
    assert result.address == "::1"
    assert receiver.requests[0].header("host") == f"[::1]:{receiver.port}"
