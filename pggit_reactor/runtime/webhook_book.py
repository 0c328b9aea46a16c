"""Opened registrations, kept as long as the database says that they are current.

A claim returns each webhook's revision, so a copy that is out of date is never used: pausing, a new secret or a new URL
count from the next claim on, with or without a notification.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

import attrs
import trio

from pggit_reactor.core.model import Webhook, WebhookId
from pggit_reactor.db.lane import Lane
from pggit_reactor.db.webhooks import UnopenableWebhook, WebhookDefaults, load_webhooks, pause_unopenable
from pggit_reactor.observability.logs import get_logger
from pggit_reactor.security.sealing import Sealer

WEBHOOKS_MAX: Final = 20_000
FRESH_SECONDS: Final = 60.0
"""Copies are read again after this, whatever their revision says."""

_log = get_logger("webhooks")


@attrs.frozen(kw_only=True)
class _Entry:
    webhook: Webhook
    fresh_until: float


@attrs.define(eq=False, kw_only=True)
class WebhookBook:
    """The cache of opened webhooks of a worker."""

    lane: Lane
    sealer: Sealer
    defaults: WebhookDefaults
    worker_id: str
    _entries: OrderedDict[WebhookId, _Entry] = attrs.field(factory=OrderedDict, init=False)

    def known(self, webhook_id: WebhookId, revision: int) -> Webhook | None:
        """Return the copy if it is current."""
        entry = self._entries.get(webhook_id)
        if entry is None or entry.webhook.revision < revision:
            return None
        return entry.webhook if trio.current_time() < entry.fresh_until else None

    async def current(self, revisions: Mapping[WebhookId, int]) -> dict[WebhookId, Webhook]:
        """Return the webhooks of a claim, loading those whose copy is not current.

        A webhook that is missing from the result may not be sent to: it was removed, or no key opens it (then it
        has been paused, aloud). Raises `DatabaseError` where loading fails.
        """
        found: dict[WebhookId, Webhook] = {}
        stale: list[WebhookId] = []
        for webhook_id, revision in revisions.items():
            webhook = self.known(webhook_id, revision)
            if webhook is None:
                stale.append(webhook_id)
            else:
                found[webhook_id] = webhook
        if stale:
            found.update(await self._load(stale))
        return found

    def forget(self) -> None:
        """Read everything again: keys or settings have changed."""
        self._entries.clear()

    async def _load(self, webhook_ids: list[WebhookId]) -> dict[WebhookId, Webhook]:
        loaded: dict[WebhookId, Webhook] = {}
        async with self.lane.use() as connection:
            for webhook in await load_webhooks(
                connection, webhook_ids, sealer=self.sealer, defaults=self.defaults
            ):
                if isinstance(webhook, UnopenableWebhook):
                    _log.error("webhook_unopenable", webhook_id=webhook.webhook_id, reason=webhook.reason)
                    await pause_unopenable(connection, webhook, worker_id=self.worker_id)
                else:
                    self._warn_of_policy(webhook)
                    loaded[webhook.webhook_id] = webhook
        now = trio.current_time()
        self._entries.update(
            (key, _Entry(webhook=webhook, fresh_until=now + _fresh_seconds(webhook)))
            for key, webhook in loaded.items()
        )
        while len(self._entries) > WEBHOOKS_MAX:
            self._entries.popitem(last=False)
        return loaded

    def _warn_of_policy(self, webhook: Webhook) -> None:
        """Say once a revision that a table of statuses cannot be read; what is read each minute is not said again."""
        entry = self._entries.get(webhook.webhook_id)
        is_news = entry is None or entry.webhook.revision != webhook.revision
        complaint = webhook.status_policy.complaint
        if complaint is not None and is_news:
            _log.warning("status_policy_unreadable", webhook_id=webhook.webhook_id, reason=complaint)


def _fresh_seconds(webhook: Webhook) -> float:
    # A secret begins and ends by time alone, without a new revision.
    change = webhook.secrets_change_in_seconds
    return FRESH_SECONDS if change is None else min(FRESH_SECONDS, change)
