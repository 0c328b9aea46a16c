"""Pins, private authorities, client certificates, versions: what is accepted, and what a refusal says."""

from __future__ import annotations

import base64
import hashlib
import ssl
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pggit_reactor.core.egress import EgressRules, TlsVersion
from pggit_reactor.core.model import Answer, AttemptFailure, FailureKind
from pggit_reactor.core.secret import Secret
from pggit_reactor.delivery.sender import open_transport, send_attempt
from pggit_reactor.delivery.tls import TlsPolicy
from pggit_reactor.testing.receiver import Authority, answer, gated, open_receiver
from pggit_reactor.testing.senders import LOOPBACK_ALLOWED, make_webhook, open_sender

BOTH_VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    """An authority that nobody trusts by default."""
    return Authority(tmp_path)


async def shown_pin(receiver) -> str:
    """The pin that OpenSSL's and cryptography's way of writing a key gives."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", receiver.port, ssl_context=context)
    async with stream:
        await stream.do_handshake()
        certificate = x509.load_der_x509_certificate(stream.getpeercert(binary_form=True))
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return "sha256/" + base64.b64encode(hashlib.sha256(key).digest()).decode()


def pin(number: int) -> str:
    return "sha256/" + base64.b64encode(bytes([number]) * 32).decode()


def failure_of(result) -> str:
    assert isinstance(result.outcome, AttemptFailure), result
    assert result.outcome.kind is FailureKind.TLS
    return result.outcome.detail


# Pins


async def test_one_pin_of_several_is_enough(receiver, sender):
    tls = TlsPolicy(pins=(pin(1), await shown_pin(receiver)))

    result = await sender.post(tls=tls)

    assert isinstance(result.outcome, Answer)


async def test_another_key_is_refused_before_a_request_and_its_pin_is_named(receiver, sender):
    seen = await shown_pin(receiver)

    result = await sender.post(tls=TlsPolicy(pins=(pin(1), pin(2))), body=b"payload")

    assert failure_of(result) == f"127.0.0.1: the receiver's key is none of the pinned ones; it is {seen}"
    assert receiver.requests == []
    await receiver.wait_open(0)


async def test_a_pin_vouches_for_nobody_whom_no_authority_vouches_for(stranger):
    async with open_receiver(authority=stranger) as receiver, open_receiver() as other:
        tls = TlsPolicy(pins=(await shown_pin(receiver),))
        async with open_sender(other) as sender:
            result = await sender.post(port=receiver.port, tls=tls)

    assert "not trusted" in failure_of(result)


async def test_a_renewed_certificate_with_the_same_key_keeps_its_pin_and_a_new_key_does_not(receiver, sender):
    tls = TlsPolicy(pins=(await shown_pin(receiver),))
    assert isinstance((await sender.post(tls=tls)).outcome, Answer)
    receiver.tls_context = receiver.authority.server_context()
    receiver.reset_all()
    await receiver.wait_open(0)

    result = await sender.post(tls=tls)

    assert await shown_pin(receiver) in failure_of(result)


# A webhook that changes


@asynccontextmanager
async def open_webhook_sender(receiver):
    rules = EgressRules.parse(unsafe_allow=LOOPBACK_ALLOWED)
    async with open_transport(rules, make_context=receiver.client_context) as transport:

        async def send(webhook):
            return await send_attempt(transport, webhook, uid="uid", body=b"{}", wall_now=1.0)

        yield transport, send


async def test_a_change_of_pins_drops_the_connections_of_the_registration_before_it(receiver):
    webhook = make_webhook(receiver.url())
    pinned = make_webhook(receiver.url(), pins=(await shown_pin(receiver), pin(1)))
    wrong = make_webhook(receiver.url(), pins=(pin(1),))
    await receiver.wait_open(0)
    async with open_webhook_sender(receiver) as (transport, send):
        assert isinstance((await send(webhook)).outcome, Answer)
        assert transport.idle_connections == 1

        changed = await send(pinned)
        assert isinstance(changed.outcome, Answer)
        assert not changed.reused
        await receiver.wait_open(1)

        assert "none of the pinned" in failure_of(await send(wrong))
        await receiver.wait_open(0)


async def test_a_request_in_flight_ends_well_and_its_connection_is_not_kept(receiver):
    """Without downtime: what was sent by the old registration gets its answer."""
    gate = trio.Event()
    receiver.script("/", gated(gate, answer(200)))
    old, new = make_webhook(receiver.url()), make_webhook(receiver.url(), pins=(await shown_pin(receiver),))
    await receiver.wait_open(0)
    results = []
    async with open_webhook_sender(receiver) as (transport, send):
        async with trio.open_nursery() as nursery:

            async def first() -> None:
                results.append(await send(old))

            nursery.start_soon(first)
            await receiver.wait_for(1)
            results.append(await send(new))
            gate.set()

        assert [result.outcome.status for result in results] == [200, 200]
        assert transport.idle_connections == 1
        await receiver.wait_open(1)


async def test_what_was_loaded_again_unchanged_keeps_its_connections(receiver):
    seen = await shown_pin(receiver)
    async with open_webhook_sender(receiver) as (_, send):
        await send(make_webhook(receiver.url(), pins=(pin(1), seen)))

        result = await send(make_webhook(receiver.url(), pins=(seen, pin(1))))

    assert result.reused


async def test_two_policies_of_one_owner_share_no_connection(receiver, sender, stranger):
    seen = await shown_pin(receiver)
    policies = [
        TlsPolicy(),
        TlsPolicy(pins=(seen,)),
        TlsPolicy(ca=Secret(receiver.authority.pem)),
        TlsPolicy(client_certificate=Secret(stranger.client_certificate())),
    ]
    for tls in policies:
        assert not (await sender.post(tls=tls)).reused
    for tls in policies:
        assert (await sender.post(tls=tls)).reused


# Private authorities


async def test_a_private_authority_is_trusted_by_its_webhook_alone(receiver, sender, stranger):
    async with open_receiver(authority=stranger) as private:
        trusted = await sender.post(port=private.port, tls=TlsPolicy(ca=Secret(stranger.pem)))
        refused = await sender.post(port=private.port)

    assert isinstance(trusted.outcome, Answer)
    assert "not trusted" in failure_of(refused)


async def test_a_private_authority_replaces_the_others(receiver, sender, stranger):
    result = await sender.post(tls=TlsPolicy(ca=Secret(stranger.pem)))

    assert "not trusted" in failure_of(result)


async def test_several_authorities_may_be_trusted(receiver, sender, stranger):
    both = Secret(stranger.pem + receiver.authority.pem)
    async with open_receiver(authority=stranger) as private:
        results = [await sender.post(port=port, tls=TlsPolicy(ca=both)) for port in (None, private.port)]

    assert [result.outcome.status for result in results] == [200, 200]


async def test_a_private_authority_still_vouches_for_names(sender, stranger):
    async with open_receiver(authority=stranger, names=("somebody.example",)) as private:
        result = await sender.post(port=private.port, tls=TlsPolicy(ca=Secret(stranger.pem)))

    assert "another address" in failure_of(result)


# Client certificates


def require_client_certificate(receiver, authority, version) -> None:
    receiver.tls_context.verify_mode = ssl.CERT_REQUIRED
    receiver.tls_context.load_verify_locations(cadata=authority.pem)
    receiver.tls_context.maximum_version = version


@BOTH_VERSIONS
async def test_a_client_certificate_is_shown_to_who_requires_it(receiver, sender, stranger, version):
    require_client_certificate(receiver, stranger, version)
    tls = TlsPolicy(client_certificate=Secret(stranger.client_certificate()))

    results = [await sender.post(tls=tls) for _ in range(2)]

    assert [result.outcome.status for result in results] == [200, 200]
    assert results[1].reused


@BOTH_VERSIONS
async def test_a_receiver_that_requires_a_certificate_is_named_as_such(receiver, sender, stranger, version):
    require_client_certificate(receiver, stranger, version)

    result = await sender.post()

    assert "requires a client certificate" in failure_of(result)
    assert receiver.requests == []


@BOTH_VERSIONS
async def test_a_client_certificate_of_another_authority_is_refused_by_name(
    receiver, sender, stranger, version
):
    require_client_certificate(receiver, stranger, version)
    own = TlsPolicy(client_certificate=Secret(receiver.authority.client_certificate()))

    detail = failure_of(await sender.post(tls=own))

    assert "the receiver refused our client certificate: it does not trust its authority" in detail


@BOTH_VERSIONS
async def test_an_expired_client_certificate_is_refused_by_name(receiver, sender, stranger, version):
    require_client_certificate(receiver, stranger, version)
    expired = stranger.client_certificate(
        not_before=datetime(2001, 1, 1, tzinfo=UTC), not_after=datetime(2002, 1, 1, tzinfo=UTC)
    )

    detail = failure_of(await sender.post(tls=TlsPolicy(client_certificate=Secret(expired))))

    assert "the receiver refused our client certificate: it has expired" in detail


@pytest.mark.parametrize(
    ("tls", "words"),
    [
        (TlsPolicy(ca=Secret("s3cret")), "private authorities do not load"),
        (TlsPolicy(client_certificate=Secret("s3cret")), "client certificate does not load"),
    ],
)
async def test_what_openssl_does_not_load_is_a_failure_of_tls_without_its_text(receiver, sender, tls, words):
    detail = failure_of(await sender.post(tls=tls))
    await receiver.wait_open(0)

    assert words in detail
    assert "s3cret" not in detail + repr(tls)


# Versions


async def test_a_receiver_below_the_least_version_is_refused_by_name():
    rules = EgressRules.parse(unsafe_allow=LOOPBACK_ALLOWED, tls_version_min=TlsVersion.TLS_1_3)
    async with (
        open_receiver(tls_version_max=ssl.TLSVersion.TLSv1_2) as old,
        open_receiver() as new,
    ):
        async with open_sender(old, rules=rules) as sender:
            refused = await sender.post()
        async with open_sender(new, rules=rules) as sender:
            accepted = await sender.post()

    assert "no version of TLS that we accept" in failure_of(refused)
    assert isinstance(accepted.outcome, Answer)
