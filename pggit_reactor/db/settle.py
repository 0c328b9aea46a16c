"""Writes the outcomes of attempts: queue row, log, audit, health and a webhook that is gone, in one statement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

from pggit_reactor.core.breaker import Vote
from pggit_reactor.core.model import ClaimedDelivery, DeliveryId, State, WebhookId
from pggit_reactor.core.outcomes import Decision
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.hot import HotStatement, booleans, floats, integers, texts
from pggit_reactor.db.statements import filled, statements

_SQL = statements("settle")
ANSWERS_SETTLE: Final = HotStatement.of(
    filled(
        _SQL["settle"],
        first_status=_SQL["first_status_of_answers"],
        first_counts=_SQL["first_counts_of_answers"],
        breaker=_SQL["breaker_of_answers"],
    )
)
ANY_SETTLE: Final = HotStatement.of(
    filled(
        _SQL["settle"],
        more_arrays=_SQL["more_arrays"],
        more_columns=_SQL["more_columns"],
        more_tally=_SQL["more_tally"],
        first_status=_SQL["first_status_of_any"],
        first_counts=_SQL["first_counts_of_any"],
        first_breaker=_SQL["first_breaker"],
        breaker=_SQL["breaker_of_any"],
        transitions=_SQL["transitions"],
        limits=_SQL["limits"],
        breakers=_SQL["breakers"],
    )
)


@attrs.frozen(kw_only=True)
class Settlement:
    """What is to be written about one claimed delivery."""

    delivery_id: DeliveryId
    lease_token: int
    webhook_id: WebhookId
    uid: str
    decision: Decision
    attempted: bool
    """False where the row ended without a request: expired, crashed too often."""
    vote: Vote = Vote.NEITHER
    """What the circuit breaker makes of it."""
    is_probe: bool = False
    http_status: int | None = None
    """0 where there was no answer; None where there was no attempt."""
    elapsed_seconds: float = 0.0
    error: str | None = None
    """For people; no secret, no path, no control characters."""
    excerpt: str | None = attrs.field(default=None, repr=False)
    """What the receiver said, for `last_error` alone: log and audit do not hold a stranger's text."""

    @classmethod
    def of(
        cls, delivery: ClaimedDelivery, decision: Decision, *, attempted: bool, **details: object
    ) -> Settlement:
        """Build the settlement of *delivery*."""
        return cls(
            delivery_id=delivery.delivery_id,
            lease_token=delivery.lease_token,
            webhook_id=delivery.webhook_id,
            uid=delivery.uid,
            is_probe=delivery.is_probe,
            decision=decision,
            attempted=attempted,
            **details,  # type: ignore[arg-type]  # the fields above, checked by attrs
        )


@attrs.frozen(kw_only=True)
class BreakerChange:
    """A circuit breaker that a batch opened or closed."""

    webhook_id: WebhookId
    open_seconds: int | None
    """None: it closed."""


@attrs.frozen(kw_only=True)
class SettleReport:
    """What became of a batch."""

    settled: tuple[Settlement, ...]
    locked: tuple[Settlement, ...]
    """Somebody holds the row locked: keep them and try again."""
    fenced: tuple[Settlement, ...]
    """The row has another lease, was settled by somebody else or was deleted: nothing was written, nor will be."""
    breakers: tuple[BreakerChange, ...] = ()


async def settle(connection: TrioConnection, batch: Sequence[Settlement], *, worker_id: str) -> SettleReport:
    """Write *batch* in one transaction.

    Raises `RowLockedError` when a webhook's shared row is held for longer than the lock timeout, and
    `DatabaseUnavailableError` when it is not known whether the batch was written: writing it again is safe, since
    rows that were written have another token.
    """
    done: set[tuple[int, int]] = set()
    breakers: list[BreakerChange] = []
    statement, bound = ANSWERS_SETTLE, _parameters(batch, worker_id)
    if not all(map(_is_plain_answer, batch)):
        statement = ANY_SETTLE
        bound |= _more_parameters(batch)
    for number, detail, word in await statement.fetch(connection, bound):
        if word is None:
            done.add((number, detail))
        elif word != "held":
            breakers.append(BreakerChange(webhook_id=number, open_seconds=detail))
    if len(done) == len(batch):
        return SettleReport(settled=tuple(batch), locked=(), fenced=(), breakers=tuple(breakers))
    # A row may be here twice, under an old lease and a new one.
    passed_over = [item for item in batch if (item.delivery_id, item.lease_token) not in done]
    ours = await _still_ours(connection, passed_over)
    return SettleReport(
        settled=tuple(item for item in batch if (item.delivery_id, item.lease_token) in done),
        locked=tuple(item for item in passed_over if (item.delivery_id, item.lease_token) in ours),
        fenced=tuple(item for item in passed_over if (item.delivery_id, item.lease_token) not in ours),
        breakers=tuple(breakers),
    )


async def warm_up(connection: TrioConnection) -> None:
    """Prepare and plan the statements, and load what they touch, by settling nothing."""
    for statement in (ANSWERS_SETTLE, ANY_SETTLE):
        await statement.fetch(connection, _parameters((), "") | _more_parameters(()))


def _is_plain_answer(item: Settlement) -> bool:
    """Say whether an outcome is of the kind that most are, and changes nothing but counts."""
    decision = item.decision
    return (
        item.vote is Vote.ANSWER
        and item.attempted
        and not item.is_probe
        and not decision.disable_webhook
        and decision.webhook_hold_seconds is None
    )


async def _still_ours(connection: TrioConnection, batch: Sequence[Settlement]) -> set[tuple[int, int]]:
    cursor = await connection.execute(
        _SQL["unsettled"],
        {
            "delivery_ids": [item.delivery_id for item in batch],
            "lease_tokens": [item.lease_token for item in batch],
        },
    )
    return set(await cursor.fetchall())


def _parameters(batch: Sequence[Settlement], worker_id: str) -> dict[str, str]:
    decisions = [item.decision for item in batch]
    return {
        "worker_id": worker_id,
        "delivery_ids": integers([item.delivery_id for item in batch]),
        "lease_tokens": integers([item.lease_token for item in batch]),
        "statuses": texts([decision.state.value for decision in decisions]),
        "delay_seconds": floats(
            [decision.delay_seconds if decision.state is State.RETRYING else None for decision in decisions]
        ),
        "retry_steps": integers([int(decision.counts_retry) for decision in decisions]),
        "crash_steps": integers([int(decision.counts_crash) for decision in decisions]),
        "attempts": booleans([item.attempted for item in batch]),
        "http_statuses": integers([item.http_status for item in batch]),
        "elapsed_ms": floats([item.elapsed_seconds * 1000 for item in batch]),
        "errors": texts([item.error for item in batch]),
        "excerpts": texts([item.excerpt for item in batch]),
        "failed_reasons": texts(
            [
                None if decision.failed_reason is None else decision.failed_reason.value
                for decision in decisions
            ]
        ),
        "uids": texts([item.uid for item in batch]),
    }


def _more_parameters(batch: Sequence[Settlement]) -> dict[str, str]:
    """Return those that only the whole form of the statement takes."""
    decisions = [item.decision for item in batch]
    return {
        "disables": booleans([decision.disable_webhook for decision in decisions]),
        "votes": texts([item.vote.value for item in batch]),
        "probes": booleans([item.is_probe for item in batch]),
        "hold_seconds": floats([decision.webhook_hold_seconds for decision in decisions]),
    }
