"""An examination on real TLS: a good receiver passes, and those that are broken are found out."""

from __future__ import annotations

import time

import pytest
from trio.testing import assert_checkpoints

from pggit_reactor.core.conformance import NO_ANSWERS_MAX, Verdict
from pggit_reactor.core.conformance_cases import BODY_BYTES_LARGEST, Form
from pggit_reactor.core.egress import EgressRules
from pggit_reactor.core.secret import Secret
from pggit_reactor.core.signing import new_secret, secret_key, verify
from pggit_reactor.core.url_policy import parse_target
from pggit_reactor.delivery.examining import examine_receiver
from pggit_reactor.errors import UrlRefusedError
from pggit_reactor.testing.receiver import Behaviour, answer, cut, hang
from pggit_reactor.testing.senders import SECRET, open_sender
from pggit_reactor.testing.verifiers import PGGIT, STANDARD, Flaw, Verifier, verifying


async def examined(receiver, *, deadline_seconds=5.0, **options):
    async with open_sender(receiver) as sender:
        return await examine_receiver(
            sender.transport,
            parse_target(receiver.url("/hook"), sender.rules),
            signing_secrets=[Secret(SECRET)],
            deadline_seconds=deadline_seconds,
            **options,
        )


def verifier(*flaws, families=(STANDARD, PGGIT)):
    return Verifier(keys=(secret_key(SECRET),), families=families, flaws=frozenset(flaws))


def failed(report):
    return {check.name for check in report.checks if check.verdict is Verdict.FAIL}


async def test_a_good_receiver_passes_and_acts_once_on_each_id(receiver):
    good = verifier()
    receiver.default = verifying(good, time.time)
    report = await examined(receiver)

    assert report.passed
    assert {check.verdict for check in report.checks} == {Verdict.PASS}
    sent_twice = {check.delivery_id for check in report.checks if check.name in {"resent", "retried"}}
    assert {id_ for id_ in good.seen if good.seen.count(id_) > 1} >= sent_twice
    assert max(len(request.body) for request in receiver.requests) == BODY_BYTES_LARGEST


async def test_the_product_verifies_what_the_examination_holds_valid(receiver):
    report = await examined(receiver)
    (first, *_) = receiver.requests

    verify(first.body, dict(first.headers), SECRET, now=time.time())
    assert first.header("x-pggit-event-type") == "pggit_reactor.check"
    assert (first.header("user-agent") or "").startswith("pggit-reactor/")
    assert first.header("webhook-id") == report.checks[0].delivery_id


BROKEN = {
    Flaw.TAKES_ANYTHING: "wrong-secret",
    Flaw.IGNORES_TIME: "stale",
    Flaw.SIGNS_BODY_ALONE: "altered-timestamp",
    Flaw.BREAKS_ON_MALFORMED: "malformed-timestamp",
    Flaw.ONE_SIGNATURE: "rotation-new-first",
    Flaw.COMPARES_TEXT: "not-ascii",
}


@pytest.mark.parametrize("flaw", BROKEN)
@pytest.mark.parametrize("families", [(STANDARD,), (PGGIT,)], ids=["standard", "pggit"])
async def test_a_broken_receiver_is_found_out(receiver, flaw, families):
    receiver.default = verifying(verifier(flaw, families=families), time.time)
    report = await examined(receiver)

    assert not report.passed
    # One that wants the old guide's signature in the standard headers takes nothing that anybody sends.
    if flaw is Flaw.SIGNS_BODY_ALONE and families == (STANDARD,):
        assert report.forms == ()
    else:
        assert BROKEN[flaw] in failed(report)


async def test_a_receiver_that_drops_connections_at_what_is_forged_is_given_up(receiver):
    good = verifier()

    async def drop(peer):
        headers = {name.lower(): value for name, value in peer.request.headers}
        status = good.status(headers, peer.request.body, time.time())
        await (answer(status) if status < 300 else cut()).act(peer)

    receiver.default = Behaviour(drop)
    report = await examined(receiver)

    assert report.cut_short
    assert len([check for check in report.checks if check.got == "no answer (reset)"]) == NO_ANSWERS_MAX


async def test_a_receiver_that_hangs_is_asked_once(receiver):
    receiver.default = hang()
    report = await examined(receiver, deadline_seconds=0.2)

    assert report.cut_short
    assert [check.got for check in report.checks] == ["no answer (timeout)"]
    assert len(receiver.requests) == 1


async def test_an_address_that_policy_refuses_is_never_connected_to(receiver):
    class Inside:
        async def resolve(self, host, port):
            return ("10.0.0.1",)

    async with open_sender(receiver, rules=EgressRules(), resolver=Inside()) as sender:
        with pytest.raises(UrlRefusedError, match=r"10\.0\.0\.1"):
            await examine_receiver(
                sender.transport,
                parse_target("https://inside.example.com/hook", sender.rules),
                signing_secrets=[Secret(SECRET)],
                deadline_seconds=1.0,
            )

    assert receiver.connection_count == 0


async def test_each_of_several_secrets_is_tried_alone(receiver):
    newer = new_secret(bytes(range(32)))
    both = Verifier(keys=(secret_key(newer), secret_key(SECRET)))
    receiver.default = verifying(both, time.time)
    async with open_sender(receiver) as sender:
        report = await examine_receiver(
            sender.transport,
            parse_target(receiver.url("/hook"), sender.rules),
            signing_secrets=[Secret(newer), Secret(SECRET)],
            family=Form.STANDARD,
            deadline_seconds=5.0,
        )

    assert report.passed


async def test_an_examination_checkpoints(receiver):
    receiver.default = hang()
    with assert_checkpoints():
        await examined(receiver, deadline_seconds=0.1)
