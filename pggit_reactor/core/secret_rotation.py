"""What the rotation of signing secrets decides: which sign at a time, what is due, what goes.

A webhook has versions of its secret. Each signs from its `not_before` to its `expires_at`; all that sign at a time sign
together, the newest first, so that a receiver may change over at any moment of the grace.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Final

import attrs

from pggit_reactor.errors import RotationError

SIGNING_MAX: Final = 4
"""Secrets that may sign at a time: each adds a signature to every request."""


@attrs.frozen(kw_only=True)
class Term:
    """When a version of a secret signs."""

    version: int
    not_before: datetime
    expires_at: datetime | None = None
    """None: for ever."""

    def signs(self, now: datetime) -> bool:
        """Tell whether it signs at *now*."""
        return self.not_before <= now and not self.has_expired(now)

    def has_expired(self, now: datetime) -> bool:
        """Tell whether its time is over."""
        return self.expires_at is not None and self.expires_at <= now


@attrs.frozen(kw_only=True)
class Rotation:
    """What a new secret makes of the others."""

    version: int
    """Of the new one."""
    expiries: Mapping[int, datetime]
    """Versions that sign on, and until when: only those whose end changes."""
    ended: tuple[int, ...]
    """Versions that go at once."""


def signing(terms: Collection[Term], now: datetime) -> tuple[int, ...]:
    """Return the versions that sign at *now*, the newest first."""
    return tuple(sorted((term.version for term in terms if term.signs(now)), reverse=True))


def changes_at(terms: Collection[Term], now: datetime) -> datetime | None:
    """Return when `signing` will be another by the passing of time alone; None: never."""
    moments = [moment for term in terms for moment in (term.not_before, term.expires_at)]
    return min((moment for moment in moments if moment is not None and moment > now), default=None)


def next_rotation(terms: Collection[Term], every: timedelta | None) -> datetime | None:
    """Return when a schedule of *every* wants a new secret; None without a schedule or a secret."""
    if every is None or not terms:
        return None
    return max(terms, key=lambda term: term.version).not_before + every


def is_old(terms: Collection[Term], now: datetime, *, reminder: timedelta) -> bool:
    """Tell whether the newest secret is so old that people are reminded; never where *reminder* is zero."""
    due = next_rotation(terms, reminder) if reminder else None
    return due is not None and due <= now


def scheduled_grace(grace: timedelta, every: timedelta) -> timedelta:
    """Return how long old secrets sign on after a rotation by schedule: not beyond the next one."""
    return min(grace, every)


def plan_rotation(terms: Collection[Term], now: datetime, *, grace: timedelta) -> Rotation:
    """Decide what becomes of *terms* when a new secret comes at *now*.

    What signs at *now* signs on for *grace*, unless its end comes sooner; without a grace it ends at once. What has
    expired goes. `RotationError` where too many would sign.
    """
    assert grace >= timedelta(0)
    version = max((term.version for term in terms), default=0) + 1
    if not grace:
        return Rotation(version=version, expiries={}, ended=tuple(sorted(term.version for term in terms)))
    end = now + grace
    left = [term for term in terms if not term.has_expired(now)]
    if len(left) >= SIGNING_MAX:
        raise RotationError(
            f"{len(left)} secrets sign or will sign already, and at most {SIGNING_MAX} may; end the oldest first: "
            "`webhook rotate-secret ID --finish`"
        )
    return Rotation(
        version=version,
        expiries={term.version: end for term in left if term.expires_at is None or term.expires_at > end},
        ended=tuple(sorted(term.version for term in terms if term.has_expired(now))),
    )


def ended_by_finish(terms: Collection[Term], now: datetime) -> tuple[int, ...]:
    """Return the versions that go when the grace ends at *now*: all before the newest that signs."""
    valid = signing(terms, now)
    return tuple(sorted(term.version for term in terms if valid and term.version < valid[0]))


def retirable(terms: Collection[Term], now: datetime) -> tuple[int, ...]:
    """Return the versions whose time is over; never the newest, so that a webhook is not left without."""
    newest = max((term.version for term in terms), default=0)
    return tuple(sorted(term.version for term in terms if term.has_expired(now) and term.version != newest))
