"""Seals the audit log: whatever is written is in the chain within 5 s. Of all workers, one at a time does it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs
import trio

from pggit_reactor.db.audit_chain import SEGMENT_ROWS_MAX, Horizon, open_horizon, seal_segment
from pggit_reactor.db.lane import Lane
from pggit_reactor.errors import AuditChainError, DatabaseError
from pggit_reactor.observability.logs import get_logger
from pggit_reactor.observability.metrics import Metrics
from pggit_reactor.security.audit_seal import AuditSealer

PAUSE_SECONDS: Final = 2.5
PATIENCE_SECONDS: Final = 1.0
"""How long a pass waits for transactions that are writing. What these bring later is sealed as late."""
LOOK_SECONDS: Final = 0.02
SEGMENTS_A_PASS_MAX: Final = 50

_log = get_logger("audit")


@attrs.define(eq=False, kw_only=True)
class AuditKeeper:
    """The loop of one worker, on a lane where nobody's delivery waits; each step gives the lane back."""

    lane: Lane
    sealer: Callable[[], AuditSealer]
    """Asked at each pass: keys may be read anew."""
    metrics: Metrics

    async def run(self) -> None:
        """Seal for ever."""
        while True:
            try:
                await self.seal()
            except AuditChainError as error:
                self.metrics.audit_seal_failed()
                _log.error("audit_chain_refused", reason=str(error))
            except DatabaseError as error:
                self.metrics.audit_seal_failed()
                _log.warning("audit_seal_failed", reason=str(error))
            await trio.sleep(PAUSE_SECONDS)

    async def seal(self) -> None:
        """Seal what there is, once."""
        sealer = self.sealer()
        async with self.lane.use() as connection:
            horizon = await open_horizon(connection, sealer.key_id)
        if horizon is None:
            return
        await self._wait(horizon)
        for _ in range(SEGMENTS_A_PASS_MAX):
            async with self.lane.use() as connection:
                segment = await seal_segment(connection, sealer, horizon)
            if segment is None:
                return
            self.metrics.audit_sealed(segment.row_count)
            if not segment.previous_proven:
                _log.warning("audit_chain_unproven", segment=segment.number - 1)
            if segment.row_count < SEGMENT_ROWS_MAX:
                return

    async def _wait(self, horizon: Horizon) -> None:
        deadline = trio.current_time() + PATIENCE_SECONDS
        while not horizon.is_clear and trio.current_time() < deadline:
            await trio.sleep(LOOK_SECONDS)
            async with self.lane.use() as connection:
                await horizon.look(connection)
