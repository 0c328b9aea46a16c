"""The token bucket of the whole fleet: all attempts of all workers together. Off unless a rate is set."""

from __future__ import annotations

from typing import Final

import attrs

from pggit_reactor.db.claims import LIMITS
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.hot import HotStatement
from pggit_reactor.db.statements import statements

_SQL = statements("fleet")
_TAKE: Final = HotStatement.of(_SQL["take"])


@attrs.frozen(kw_only=True)
class FleetTokens:
    """What the bucket gave."""

    count: int
    wait_seconds: float | None
    """Until it gives more; None where it gave all that was wanted."""


@attrs.frozen(kw_only=True)
class FleetBucket:
    """How the bucket fills. All workers of a database are to agree on it; its state is in the database."""

    rate_per_s: float
    burst: int

    async def take(self, connection: TrioConnection, wanted: int) -> FleetTokens:
        """Take up to *wanted* tokens."""
        bound = {**LIMITS, "rate": str(self.rate_per_s), "burst": str(self.burst), "wanted": str(wanted)}
        ((count, wait_seconds),) = await _TAKE.fetch(connection, bound)
        return FleetTokens(count=count, wait_seconds=wait_seconds)

    async def give_back(self, connection: TrioConnection, count: int) -> None:
        """Put back tokens that were taken and not used."""
        if count:
            await connection.execute(
                _SQL["give_back"], {**LIMITS, "rate": self.rate_per_s, "tokens": count}, prepare=True
            )
