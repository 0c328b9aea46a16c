"""Whose fault it is when the database refuses a statement about many rows.

One statement claims for many webhooks, or settles for them. Where it is refused for one row (a value, a body that takes
too long to read, a trigger of somebody else's), the others must not wait for it: so they are tried apart, and only
the guilty one waits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

from pggit_reactor.core.model import WebhookId
from pggit_reactor.errors import DatabaseError, DatabaseUnavailableError, ReadOnlyDatabaseError

BARRED_SECONDS_MIN: Final = 5.0
BARRED_SECONDS_PER_SECOND: Final = 10
"""What took a second to be refused is tried again after ten."""

QUERY_CANCELED: Final = "57014"
"""By statement_timeout, or by an administrator."""
# SQLSTATE classes that are about the server and not about rows: resources, operators, system, internal.
_SERVER_FAULTS: Final = ("53", "57", "58", "XX")


def is_about_rows(error: DatabaseError) -> bool:
    """Whether the database refused these rows, and might take others."""
    if error.sqlstate == QUERY_CANCELED:
        return True
    if isinstance(error, (DatabaseUnavailableError, ReadOnlyDatabaseError)):
        return False
    return (error.sqlstate or "")[:2] not in _SERVER_FAULTS


class Suspects:
    """Webhooks that made a claim fail, or may have: each is claimed for alone, one row at a time, until that succeeds.

    `now` is the caller's clock.
    """

    def __init__(self) -> None:
        self._retry_at: dict[WebhookId, float] = {}

    def barred(self, now: float) -> frozenset[WebhookId]:
        """Return those that were found guilty and are not to be tried yet."""
        return frozenset(webhook_id for webhook_id, at in self._retry_at.items() if at > now)

    def narrowed(self, budgets: Mapping[WebhookId, int]) -> dict[WebhookId, int]:
        """Return what of *budgets* to claim now: one row of one suspect, or all where none is suspect."""
        suspect = next((webhook_id for webhook_id in budgets if webhook_id in self._retry_at), None)
        return dict(budgets) if suspect is None else {suspect: 1}

    def refused(
        self, budgets: Mapping[WebhookId, int], *, now: float, took_seconds: float
    ) -> tuple[WebhookId, float] | None:
        """Remember a claim that failed. Return the guilty webhook, and when to try again; None while unknown."""
        if sum(budgets.values()) > 1:
            for webhook_id in budgets:
                self._retry_at.setdefault(webhook_id, -math.inf)
            return None
        (guilty,) = budgets
        self._retry_at[guilty] = now + max(BARRED_SECONDS_MIN, took_seconds * BARRED_SECONDS_PER_SECOND)
        return guilty, self._retry_at[guilty]

    def cleared(self, webhook_ids: Iterable[WebhookId]) -> None:
        """Forget those for whom a claim succeeded."""
        for webhook_id in webhook_ids:
            self._retry_at.pop(webhook_id, None)
