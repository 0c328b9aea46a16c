"""A worker under TLS policies: what a registration says counts from the next request on."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from pggit_reactor.cli.webhook_keys import parse_change
from pggit_reactor.core.secret import Secret
from pggit_reactor.db.connect import open_connection
from pggit_reactor.db.registry import By, change_webhook
from pggit_reactor.security.keyring import Keyring
from pggit_reactor.security.sealing import Sealer
from pggit_reactor.testing.receiver import Authority, open_receiver
from pggit_reactor.testing.rig import MASTER_KEY, Rig

WRONG_PIN = "sha256/" + "A" * 43 + "="


async def change(rig: Rig, webhook_id: int, *words: str) -> None:
    """What `webhook set` does."""
    sealer = Sealer(Keyring.parse(Secret(MASTER_KEY)))
    async with open_connection(rig.database.dsn, application_name="test") as connection:
        await change_webhook(
            connection, sealer, webhook_id, parse_change(words), by=By(name="test", host="test")
        )


async def test_pins_change_while_deliveries_flow(rig: Rig):
    webhook_id = await rig.add_webhook()
    async with rig.worker():
        (first,) = await rig.insert(webhook_id)
        await rig.until_status(first, "delivered")

        await change(rig, webhook_id, f"pins={WRONG_PIN}")
        (second,) = await rig.insert(webhook_id)
        await rig.until(
            "SELECT last_error LIKE 'tls: %%none of the pinned%%' FROM pggit.alert_delivery_queue"
            " WHERE delivery_id = %s",
            second,
        )
        (error,) = await rig.row(second, "last_error")
        seen = error.split()[-1]

        await change(rig, webhook_id, f"pins={WRONG_PIN},{seen}")
        await rig.until_status(second, "delivered")
    assert [request.connection for request in rig.receiver.requests_for("/hook")] == [
        1,
        3 + await failed(rig, second),
    ]


async def failed(rig: Rig, delivery_id: int) -> int:
    """How many attempts of *delivery_id*, beyond the first, met the wrong pin: each opened a connection."""
    (attempts,) = await rig.row(delivery_id, "attempt_count")
    return attempts - 2


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def test_a_private_receiver_that_requires_a_certificate_is_delivered_to(rig: Rig, stranger, tmp_path):
    client = tmp_path / "client.pem"
    client.touch(mode=0o600)
    client.write_text(stranger.client_certificate())
    async with open_receiver(authority=stranger) as private:
        private.tls_context.verify_mode = ssl.CERT_REQUIRED
        private.tls_context.load_verify_locations(cadata=stranger.pem)
        webhook_id = await rig.add_webhook(url=private.url("/hook"))
        await change(rig, webhook_id, f"ca=@{stranger.ca_file}", f"client_certificate=@{client}")
        async with rig.worker():
            (delivery_id,) = await rig.insert(webhook_id)
            await rig.until_status(delivery_id, "delivered")

        (request,) = await private.wait_for(1)
    assert request.path == "/hook"
