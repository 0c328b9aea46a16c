"""How many deliveries of each hot webhook may be claimed now.

Only what can be sent now is ever claimed: nothing waits under a lease for a slot. So a webhook with a million rows
costs the others nothing but its own share of the slots.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from pggit_reactor.core.model import WebhookId


@attrs.frozen(kw_only=True)
class Demand:
    """A hot webhook and what it could take."""

    webhook_id: WebhookId
    room: int
    """Attempts that its concurrency still allows."""


def plan_budgets(demands: Iterable[Demand], *, slots: int) -> dict[WebhookId, int]:
    """Share *slots* among *demands* by water-filling: nobody gets more than its room, and no slot that somebody
    could use is left over while another holds more than its even share.

    Earlier demands get the odd slots, so a caller who rotates its order is fair over time. Webhooks whose budget
    would be zero are left out.
    """
    open_demands = [demand for demand in demands if demand.room > 0]
    # Small demands first: what they leave over raises the share of the others. Among equals the last in line goes
    # first, because what does not divide evenly falls to those that come later here.
    by_room = sorted(range(len(open_demands)), key=lambda index: (open_demands[index].room, -index))
    granted = [0] * len(open_demands)
    left = max(slots, 0)
    for position, index in enumerate(by_room):
        claimants = len(by_room) - position
        granted[index] = min(open_demands[index].room, left // claimants)
        left -= granted[index]
    return {
        demand.webhook_id: budget for demand, budget in zip(open_demands, granted, strict=True) if budget > 0
    }
