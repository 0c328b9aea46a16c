"""What people do to webhooks and deliveries, over the functions that psql users call: the database checks the
right, does it, and audits it.

Each returns the database's sentence about what was done. `NotFoundError`, `IllegalTransitionError` where the
webhook or delivery is not in a state for it, `RowLockedError` for a delivery that is being sent,
`ConfigurationError` for an argument that cannot be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from types import MappingProxyType
from typing import Final

import attrs

from pggit_reactor.db.acting import acting
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.registry import By
from pggit_reactor.db.statements import statements
from pggit_reactor.errors import (
    ConfigurationError,
    DatabaseError,
    IllegalTransitionError,
    NotFoundError,
    ReactorError,
    RowLockedError,
)

_ERRORS: Final[Mapping[str, type[ReactorError]]] = MappingProxyType(
    {
        "P0002": NotFoundError,  # no_data_found
        "22023": ConfigurationError,  # invalid_parameter_value
        "55000": IllegalTransitionError,  # object_not_in_prerequisite_state
        "55006": RowLockedError,  # object_in_use
    }
)
_SQL = statements("operations")


@attrs.frozen(kw_only=True)
class Explanation:
    """Why a delivery has not been sent, and when it will be."""

    delivery_id: int
    uid: str
    webhook_id: int
    webhook_name: str | None
    delivery_status: str
    waits_for: str
    """A word for programs."""
    due_at: str | None
    """When it will be attempted at the earliest, as PostgreSQL's text; None where nobody knows or it will not."""
    explanation: str


async def pause_webhook(
    connection: TrioConnection,
    webhook_id: int,
    *,
    until: float | datetime | None = None,
    reason: str | None = None,
    by: By,
) -> str:
    """Stop deliveries at once: for *until* seconds, until that time, or until it is resumed."""
    is_time = isinstance(until, datetime)
    bound = {
        "webhook_id": webhook_id,
        "until": until if is_time else None,
        "seconds": None if is_time else until,
        "reason": reason,
    }
    return await _do(connection, "pause", bound, by=by)


async def resume_webhook(connection: TrioConnection, webhook_id: int, *, by: By) -> str:
    """End a pause."""
    return await _do(connection, "resume", {"webhook_id": webhook_id}, by=by)


async def disable_webhook(
    connection: TrioConnection, webhook_id: int, *, reason: str | None = None, by: By
) -> str:
    """Take a webhook out of service."""
    return await _do(connection, "disable", {"webhook_id": webhook_id, "reason": reason}, by=by)


async def enable_webhook(connection: TrioConnection, webhook_id: int, *, by: By) -> str:
    """Put a disabled webhook back to work."""
    return await _do(connection, "enable", {"webhook_id": webhook_id}, by=by)


async def reset_webhook(
    connection: TrioConnection, webhook_id: int, *, reason: str | None = None, by: By
) -> str:
    """Close its circuit breaker and forget its failures."""
    return await _do(connection, "reset", {"webhook_id": webhook_id, "reason": reason}, by=by)


async def replay_delivery(connection: TrioConnection, which: str, *, by: By) -> str:
    """Send a settled delivery again; *which* is an id or a uid, here and below."""
    return await _do(connection, "replay", {"which": which}, by=by)


async def requeue_delivery(connection: TrioConnection, which: str, *, by: By) -> str:
    """Make a delivery that is not delivered due now."""
    return await _do(connection, "requeue", {"which": which}, by=by)


async def cancel_delivery(
    connection: TrioConnection, which: str, *, reason: str | None = None, by: By
) -> str:
    """End a delivery that is not settled."""
    return await _do(connection, "cancel", {"which": which, "reason": reason}, by=by)


async def explain_delivery(connection: TrioConnection, which: str) -> Explanation:
    """Say why a delivery has not been sent, and when it will be."""
    with _told():
        cursor = await connection.execute(_SQL["explain"], {"which": which})
    names = [column.name for column in cursor.description or ()]
    row = await cursor.fetchone()
    assert row is not None
    return Explanation(**dict(zip(names, row, strict=True)))


async def _do(connection: TrioConnection, name: str, bound: Mapping[str, object], *, by: By) -> str:
    with _told():
        async with acting(connection, by):
            row = await (await connection.execute(_SQL[name], bound)).fetchone()
    assert row is not None
    return str(row[0])


@contextmanager
def _told() -> Iterator[None]:
    """Turn what the functions raise into errors that say what to do about it."""
    try:
        yield
    except DatabaseError as error:
        kind = _ERRORS.get(error.sqlstate or "")
        if kind is None:
            raise
        raise kind(str(error)) from error
