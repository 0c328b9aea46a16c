"""The fleet's limit in a worker: tokens are taken before a claim, and what it did not use goes back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Self

import attrs
import trio

from pggit_reactor.config.settings import DeliverySettings
from pggit_reactor.core.model import WebhookId
from pggit_reactor.core.token_bucket import ration
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.fleet import FleetBucket
from pggit_reactor.observability.metrics import Metrics


@attrs.define(eq=False, kw_only=True)
class FleetLimit:
    """What all workers together may begin. Without a bucket it limits nothing and asks nothing."""

    bucket: FleetBucket | None
    metrics: Metrics
    _turn: int = attrs.field(default=0, init=False)
    _short_until: float = attrs.field(default=-math.inf, init=False)

    @classmethod
    def of(cls, settings: DeliverySettings, *, metrics: Metrics) -> Self:
        """Return the limit that the settings ask for."""
        rate, burst = settings.fleet_rate_per_s, settings.fleet_burst
        return cls(bucket=FleetBucket(rate_per_s=rate, burst=burst) if rate else None, metrics=metrics)

    @property
    def short_until(self) -> float:
        """When it is worth asking for tokens again; past where it is now."""
        return self._short_until

    def is_short(self, now: float) -> bool:
        """Say whether there were no more tokens, and there can be none yet."""
        return now < self._short_until

    async def allow(
        self, connection: TrioConnection, budgets: Mapping[WebhookId, int]
    ) -> dict[WebhookId, int]:
        """Take tokens for *budgets*, and return what there were tokens for."""
        if self.bucket is None:
            return dict(budgets)
        tokens = await self.bucket.take(connection, sum(budgets.values()))
        if tokens.wait_seconds is not None:
            self._short_until = trio.current_time() + tokens.wait_seconds
            self.metrics.fleet_waited()
            budgets = self._in_turn(budgets)
            self._turn += tokens.count
        return ration(budgets, tokens.count)

    def _in_turn(self, budgets: Mapping[WebhookId, int]) -> dict[WebhookId, int]:
        """Begin with those that the last ration came to an end before."""
        ids = list(budgets)
        first = self._turn % len(ids)
        return {webhook_id: budgets[webhook_id] for webhook_id in (*ids[first:], *ids[:first])}

    async def give_back(self, connection: TrioConnection, count: int) -> None:
        """Put back tokens that were taken for rows that were not there; so there are some, whatever the bucket said."""
        if self.bucket is not None:
            self._short_until = -math.inf
            await self.bucket.give_back(connection, count)

    async def take_one(self, connection: TrioConnection) -> bool:
        """Take a token for an attempt that begins later than its claim allows; say whether there was one."""
        return self.bucket is None or (await self.bucket.take(connection, 1)).count == 1
