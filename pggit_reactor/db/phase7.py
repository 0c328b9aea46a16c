"""Webhooks of pgGit's phase 7: read where they are, and registered anew under their ids."""

from __future__ import annotations

from collections.abc import Collection
from types import MappingProxyType
from typing import Final

import attrs

from pggit_reactor.core.secret import Secret
from pggit_reactor.db import registry
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.operations import disable_webhook
from pggit_reactor.db.registry import By, Change
from pggit_reactor.db.statements import statements
from pggit_reactor.errors import NotFoundError
from pggit_reactor.security.sealing import Sealer

DISCLOSED_LABEL: Final = "url_disclosed"
"""Marks a webhook whose URL everybody can read who reads a backup of phase 7."""

_DISABLED_REASON: Final = "disabled in phase 7"
_NAME_CHARACTERS_MAX: Final = 200
_SQL = statements("phase7")


@attrs.frozen(kw_only=True)
class Phase7Webhook:
    """A row of alert_notification_webhooks."""

    webhook_id: int
    webhook_type: str
    name: str
    channel: str | None
    is_enabled: bool
    encrypted_url: bytes = attrs.field(repr=False)
    is_registered: bool
    """Whether the registry has a webhook of this id already."""


async def read_phase7_webhooks(connection: TrioConnection) -> tuple[Phase7Webhook, ...]:
    """Return phase 7's webhooks, by id; `NotFoundError` where phase 7 is not installed."""
    if await (await connection.execute(_SQL["is_there"])).fetchone() != (True,):
        raise NotFoundError("phase 7 is not installed here: there is no pggit.alert_notification_webhooks")
    cursor = await connection.execute(_SQL["webhooks"])
    names = [column.name for column in cursor.description or ()]
    return tuple(Phase7Webhook(**dict(zip(names, row, strict=True))) for row in await cursor.fetchall())


async def register_phase7_webhook(
    connection: TrioConnection,
    sealer: Sealer,
    old: Phase7Webhook,
    *,
    url: Secret[str],
    url_origin: str,
    secret: Secret[str],
    rate_per_s: float,
    by: By,
) -> str:
    """Register *old* under its own id, which takes over the deliveries that wait for it; return its name.

    Its type becomes the label that routing defaults look at. What was disabled is disabled, from its first
    moment.
    """
    taken = {row[0] for row in await (await connection.execute(_SQL["taken_names"])).fetchall()}
    name = free_name(old, taken)
    labels = {"type": old.webhook_type, "channel": old.channel, DISCLOSED_LABEL: "phase 7"}
    change = Change(
        name=name,
        url=url,
        url_origin=url_origin,
        policy=MappingProxyType({"rate_per_s": rate_per_s}),
        labels=MappingProxyType(labels),
    )
    async with connection.transaction():
        await registry.add(connection, sealer, change, secret=secret, webhook_id=old.webhook_id, by=by)
        if not old.is_enabled:
            await disable_webhook(connection, old.webhook_id, reason=_DISABLED_REASON, by=by)
    return name


def free_name(old: Phase7Webhook, taken: Collection[str]) -> str:
    """Return a name for *old* that is not *taken*: its own, where that can name a webhook.

    In phase 7 a name was unique only within its type, and could be any text.
    """
    own = "".join(letter if letter.isprintable() else " " for letter in old.name)[
        :_NAME_CHARACTERS_MAX
    ].strip()
    is_number = own.removeprefix("-").isdecimal()
    wanted = [own] if own and not is_number else []
    wanted += [f"{old.webhook_type} {own}".strip(), f"{old.webhook_type} {own} {old.webhook_id}"]
    return next((name for name in wanted if name not in taken), f"phase 7 webhook {old.webhook_id}")
