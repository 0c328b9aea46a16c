"""The demo's receiver is no yes-man: what the demo's last line says depends on it."""

from __future__ import annotations

import ssl
import time

import httpx
import pytest
import trio

from pggit_reactor.cli.demonstration.certificate import make_certificate
from pggit_reactor.cli.demonstration.receiver import HOST, open_receiver
from pggit_reactor.receiver import sign
from pggit_reactor.runtime.clock import SystemClock

SECRET = "whsec_" + "A" * 44
BODY = b'{"alert_id": 7}'


def signed(body: bytes = BODY, uid: str = "00000000-0000-8000-8000-000000000001") -> dict[str, str]:
    return sign(body, id=uid, timestamp=int(time.time()), secrets=[SECRET])


@pytest.fixture
async def receiver(tmp_path):
    authority, context = make_certificate(tmp_path, address=HOST, wall_now=time.time())
    async with open_receiver(context, clock=SystemClock()) as receiver:
        receiver.secret = SECRET
        receiver.trust = ssl.create_default_context(cafile=str(authority))
        # What Python 3.13 asks of certificates by default.
        receiver.trust.verify_flags |= ssl.VERIFY_X509_STRICT
        yield receiver


@pytest.fixture
async def client(receiver):
    async with httpx.AsyncClient(verify=receiver.trust, timeout=10) as client:
        yield client


async def test_a_right_signature_is_accepted_and_remembered(receiver, client):
    answers = [await client.post(receiver.url, content=BODY, headers=signed()) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [204, 204]
    assert [arrival.alert_id for arrival in receiver.arrivals] == [7, 7]
    assert {arrival.uid for arrival in receiver.arrivals} == {"00000000-0000-8000-8000-000000000001"}


@pytest.mark.parametrize("headers", [{}, signed(b'{"alert_id": 8}')], ids=["none", "of another body"])
async def test_a_wrong_signature_is_refused_and_counted(receiver, client, headers):
    answer = await client.post(receiver.url, content=BODY, headers=headers)

    assert answer.status_code == 401
    assert receiver.arrivals == []
    assert len(receiver.refused) == 1


async def test_an_answer_that_is_held_does_not_come_but_the_alert_has_arrived(receiver, client):
    receiver.holding = (7,)
    answers = []

    async def post() -> None:
        answers.append(await client.post(receiver.url, content=BODY, headers=signed()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(post)
        await receiver.wait_for([7])
        nursery.cancel_scope.cancel()

    assert answers == []
    assert [arrival.held for arrival in receiver.arrivals] == [True]
