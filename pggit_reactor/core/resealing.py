"""What re-sealing under a new master key decides: how fast, how far, who is in the way, which key may go."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

import attrs

ROUNDS_MAX: Final = 5
"""Passes over the registry; what is still sealed with an old key after them, somebody seals with it all the time."""


@attrs.frozen(kw_only=True)
class Progress:
    """How far a rotation has come. Values that others sealed or removed meanwhile may carry *done* past *total*."""

    done: int
    total: int
    elapsed_seconds: float

    @property
    def left(self) -> int:
        """How many values are still to be sealed anew."""
        return max(0, self.total - self.done)

    @property
    def share(self) -> float:
        """The part that is done, 0 to 1."""
        return 1.0 if self.total <= 0 else min(1.0, self.done / self.total)

    @property
    def left_seconds(self) -> float | None:
        """How long the rest takes at the pace so far; None before there is a pace."""
        if not self.left:
            return 0.0
        return self.elapsed_seconds * self.left / self.done if self.done > 0 else None


def pause_seconds(progress: Progress, *, rate: float) -> float:
    """Return how long to wait before the next batch, so that no more than *rate* values a second are sealed."""
    assert rate > 0
    return max(0.0, progress.done / rate - progress.elapsed_seconds)


def is_round_due(*, number: int, left: int, done: int) -> bool:
    """Tell whether another pass is worth it: after *number* passes, the last of which did *done*, *left* remain."""
    return left > 0 and number < ROUNDS_MAX and (number == 0 or done > 0)


@attrs.frozen(kw_only=True)
class WorkerKeys:
    """A live worker, and the master keys that it has."""

    worker_id: str
    host: str
    pid: int
    key_ids: tuple[str, ...] | None
    """The first seals. None: it is of a version that does not say."""
    has_heard: bool = True
    """Whether it spoke since the key in question came into use: only then *key_ids* says that it has the right one."""

    def __str__(self) -> str:
        return f"{self.worker_id} ({self.host}, pid {self.pid})"


def in_the_way(workers: Iterable[WorkerKeys], key_id: str) -> tuple[WorkerKeys, ...]:
    """Return the workers that could not open what *key_id* seals, or of which that is not known."""
    return tuple(
        worker
        for worker in workers
        if worker.key_ids is None or key_id not in worker.key_ids or not worker.has_heard
    )


def retirable(
    *, in_use: Collection[str], counts: Mapping[str | None, int], active_id: str
) -> tuple[str, ...]:
    """Return which keys of *in_use* may be retired: sealed values need none of them, and nothing is sealed with them.

    None while a value is of an unknown form: nobody knows which key it needs.
    """
    if counts.get(None):
        return ()
    return tuple(key_id for key_id in in_use if key_id != active_id and not counts.get(key_id))
