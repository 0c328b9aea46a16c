"""LISTEN, with a canary.

A connection can be deaf without being dead: a pooler in transaction mode drops notifications, a firewall drops the
connection's packets. So the listener sends itself a notification on its own channel and connection from time to time,
and reconnects when nothing comes back. What is missed meanwhile costs a poll's time, never an alert.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import attrs
import trio

from pggit_reactor.core.model import WebhookId
from pggit_reactor.core.secret import Secret
from pggit_reactor.db.claims import ids_of
from pggit_reactor.db.connect import TrioConnection, connect
from pggit_reactor.errors import DatabaseUnavailableError

CHANNEL: Final = "pggit_delivery"
CANARY_EVERY_SECONDS: Final = 5.0
CANARY_ANSWER_SECONDS: Final = 5.0
CONNECT_SECONDS: Final = 5.0
_CANARY_PREFIX: Final = "canary:"
_OPTIONS: Final = {"statement_timeout": "5000", "lock_timeout": "5000"}


@attrs.frozen(kw_only=True)
class Heard:
    """What a batch of notifications said."""

    webhook_ids: Sequence[WebhookId]
    look_yourself: bool
    """A notification without usable ids came: anything may have become ready."""


@attrs.define(eq=False, kw_only=True)
class Listener:
    """A connection that listens; use it from one task. See `open_listener`."""

    connection: TrioConnection
    canary: str
    on_round_trip: Callable[[float], None]
    canary_every_seconds: float
    canary_answer_seconds: float
    _sent_at: float | None = None
    _next_canary_at: float = 0.0

    async def hear(self) -> Heard:
        """Wait for notifications of others; answers of the canary are taken out.

        Raises `DatabaseUnavailableError` when the connection is lost, or deaf: nothing came back within
        `canary_answer_seconds`.
        """
        while True:
            payloads = await self._payloads()
            if payloads is None:
                await self._send_canary()
                continue
            heard = self._sorted(payloads)
            if heard is not None:
                return heard

    async def _payloads(self) -> list[str] | None:
        """Return what came, or None when the canary is due."""
        deadline = (
            self._next_canary_at if self._sent_at is None else self._sent_at + self.canary_answer_seconds
        )
        with trio.move_on_at(deadline):
            return [notify.payload for notify in await self.connection.wait_notifies()]
        if self._sent_at is not None:
            self.connection.close_now()
            raise DatabaseUnavailableError(
                "the listener's own notification did not come back within "
                f"{self.canary_answer_seconds:g} s: the connection is deaf, or goes through a transaction-mode "
                "pooler (set DATABASE_LISTEN_URL to a direct connection)"
            )
        return None

    async def _send_canary(self) -> None:
        self._sent_at = trio.current_time()
        with trio.move_on_after(self.canary_answer_seconds) as scope:
            await self.connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, self.canary))
        if scope.cancelled_caught:
            self.connection.close_now()
            raise DatabaseUnavailableError("the listener's connection gave no answer")

    def _sorted(self, payloads: Sequence[str]) -> Heard | None:
        ids: dict[WebhookId, None] = {}
        look_yourself = others = False
        for payload in payloads:
            if payload.startswith(_CANARY_PREFIX):
                if payload == self.canary:
                    self._answered()
                continue
            others = True
            hinted = ids_of(payload)
            look_yourself = look_yourself or not hinted
            ids.update(dict.fromkeys(hinted))
        return Heard(webhook_ids=tuple(ids), look_yourself=look_yourself) if others else None

    def _answered(self) -> None:
        if self._sent_at is not None:
            now = trio.current_time()
            self.on_round_trip(now - self._sent_at)
            self._sent_at = None
            self._next_canary_at = now + self.canary_every_seconds


@asynccontextmanager
async def open_listener(
    dsn: Secret[str],
    *,
    application_name: str,
    token: int,
    on_round_trip: Callable[[float], None] = lambda _: None,
    canary_every_seconds: float = CANARY_EVERY_SECONDS,
    canary_answer_seconds: float = CANARY_ANSWER_SECONDS,
) -> AsyncIterator[Listener]:
    """Connect and LISTEN; inside the block no notification of a later commit is missed while the connection lives.

    The first canary is sent at the first `hear`, so a deaf connection is found out at once and not after a while.
    """
    connection = await connect(
        dsn, application_name=application_name, options=_OPTIONS, connect_timeout_seconds=CONNECT_SECONDS
    )
    try:
        with trio.move_on_after(CONNECT_SECONDS) as scope:
            await connection.execute("LISTEN pggit_delivery")
        if scope.cancelled_caught:
            raise DatabaseUnavailableError("LISTEN had no answer")
        yield Listener(
            connection=connection,
            canary=f"{_CANARY_PREFIX}{token}",
            on_round_trip=on_round_trip,
            canary_every_seconds=canary_every_seconds,
            canary_answer_seconds=canary_answer_seconds,
        )
    finally:
        connection.close_now()
