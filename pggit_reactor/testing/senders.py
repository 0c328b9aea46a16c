"""The real sender, aimed at a receiver of the testing kit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import asynccontextmanager
from typing import Final

from pggit_reactor.core.model import AttemptResult, SignatureScope, Webhook, WebhookId, WebhookState
from pggit_reactor.core.secret import Secret
from pggit_reactor.core.url_policy import EgressRules, parse_target
from pggit_reactor.delivery.connections import PoolLimits
from pggit_reactor.delivery.exchange import OnPhase, Route
from pggit_reactor.delivery.resolver import Resolver
from pggit_reactor.delivery.sender import WebhookTransport, open_transport
from pggit_reactor.delivery.tls import PUBLIC, TlsPolicy
from pggit_reactor.testing.receiver import Receiver

LOOPBACK_ALLOWED: Final = "127.0.0.0/8:*,[::1]:*"
SECRET: Final = "whsec_" + "QUJD" * 8  # of tests


class Sender:
    """A transport that trusts one receiver's authority. Open it with `open_sender`."""

    def __init__(self, transport: WebhookTransport, receiver: Receiver, rules: EgressRules) -> None:
        self.transport = transport
        self.rules = rules
        self._receiver = receiver

    async def post(
        self,
        path: str = "/",
        body: bytes = b"{}",
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        key: Hashable = 1,
        tls: TlsPolicy = PUBLIC,
        headers: Sequence[tuple[str, str]] = (),
        deadline_seconds: float = 5.0,
        on_phase: OnPhase | None = None,
    ) -> AttemptResult:
        """POST *body* to the receiver, or to another *port* of it."""
        url = self._receiver.url(path, host=host)
        if port is not None:
            url = url.replace(f":{self._receiver.port}", f":{port}")
        return await self.transport.post(
            route=Route(owner=key, target=parse_target(url, self.rules), tls=tls),
            headers=headers,
            body=body,
            deadline_seconds=deadline_seconds,
            on_phase=on_phase,
        )


@asynccontextmanager
async def open_sender(
    receiver: Receiver,
    *,
    rules: EgressRules | None = None,
    resolver: Resolver | None = None,
    limits: PoolLimits | None = None,
) -> AsyncIterator[Sender]:
    """Open a sender for *receiver*, which runs in this process."""
    rules = rules or EgressRules.parse(unsafe_allow=LOOPBACK_ALLOWED)
    async with open_transport(
        rules, resolver=resolver, make_context=receiver.client_context, limits=limits
    ) as transport:
        yield Sender(transport, receiver, rules)


def make_webhook(url: str, /, **changes: object) -> Webhook:
    """Return a registered receiver at *url*, with one secret, changed as said."""
    values: dict[str, object] = {
        "webhook_id": WebhookId(1),
        "name": "test",
        "revision": 1,
        "state": WebhookState.ACTIVE,
        "url": Secret(url),
        "url_origin": "https://receiver.test",
        "secrets": (Secret(SECRET),),
        "signature_scope": SignatureScope.FULL,
    }
    return Webhook(**{**values, **changes})  # type: ignore[arg-type]  # attrs checks what a test may change
