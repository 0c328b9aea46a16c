"""How many deliveries of each hot webhook may be claimed now: deficit round robin (Shreedhar and Varghese, 1995).

Only what can be sent now is ever claimed: nothing waits under a lease for a slot. So a webhook with a million rows
costs the others nothing but its own share of the slots.

Hot webhooks stand in a ring. A turn is worth as many slots as the webhook weighs; where slots are many, all turns are
worth as many times that. A turn that is broken off because there are no more slots is finished first thing next time,
so weights hold over many small claims as well as in a large one. A turn that cannot be used, because the webhook has no
room, is over: nobody saves up.

What a webhook may *hold* is another question than whose turn it is: a receiver that hangs takes few turns and keeps
what it got. Of the slots that are free or its own, it may hold a share and no more. One that hangs leaves half of a
worker to the others (at a share of one half), two leave a third, ten leave some: no few of them ever hold it whole. A
bound that does not know how many slots are free would leave too much unused, or let two of them fill the worker; a
fixed reserve would be filled by those that it is not for. (Choudhury and Hahne, "Dynamic Queue Length Thresholds for
Shared-Memory Packet Switches", 1998.) Among those that want more than they may hold, the heavier hold more.

Nobody knows how many rows a webhook has that has just become hot; most have few. What it is given and has no rows for
the others go without until the next claim, so while others are known to have rows it gets little at first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from pggit_reactor.core.model import WebhookId

NEWCOMER_SLOTS: Final = 8
"""What a webhook gets that may have but one row, before those that have more have what they may."""


class Demand(NamedTuple):
    """A hot webhook and what it could take. A tuple: a plan makes many."""

    webhook_id: WebhookId
    weight: int
    held: int
    """Slots that it has now."""
    room: int
    """Slots that it could take more, above 0."""
    share: float = 1.0
    """How much of the slots that are free or its own it may hold."""
    is_newcomer: bool = False
    """It may have but one row."""


class Shares(NamedTuple):
    """Who gets how much, and what is to be remembered until the next time."""

    budgets: dict[WebhookId, int]
    """Above 0, for those that get something."""
    served: Sequence[WebhookId] = ()
    """Whose turn is over, in order: they go to the end of the ring."""
    broken_off: WebhookId | None = None
    """Whose turn is not: it goes first the next time."""
    owed: int = 0
    """What is left of that turn."""


def share_of(share: float, *, weight: int, mean_weight: float) -> float:
    """Return the share of a webhook that weighs *weight*, where one of *mean_weight* has *share*.

    Of those that hold all they may, each holds as many times the free slots as it weighs; all together they leave as
    many free as if they weighed the same.
    """
    weighed = share * weight / mean_weight
    return weighed / (1.0 - share + weighed)


def most_more(held: int, *, free: int, share: float) -> int:
    """Return how many slots more a webhook that holds *held* may take while *free* are free, so that it holds *share*
    of those that are then free or its own.

    One that holds none may always have one: where webhooks are many, the share of each would be none.
    """
    return max(int(share * (free + held)) - held, 0 if held else min(free, 1))


def share_slots(demands: Sequence[Demand], *, slots: int, free: int, owed: int = 0) -> Shares:
    """Share *slots*, of *free* ones, among *demands*, which stand in the order of the ring.

    No slot is left over that somebody could use: has room for, and may hold. *owed* is what is left of the first
    demand's turn that was broken off; 0 where none was.
    """
    slots = min(slots, free)
    if slots <= 0:
        return Shares({}, (), demands[0].webhook_id if owed and demands else None, owed)
    if len(demands) == 1:
        return _alone(demands[0], slots=slots, free=free, owed=owed)
    if _all_can_have_all(demands, slots=slots, free=free):
        return Shares({demand.webhook_id: demand.room for demand in demands})
    turns = _Turns(slots=slots, free=free)
    if owed:
        first = demands[0]
        turns.play([first._replace(weight=owed)], each=1)
        demands = [*demands[1:], first]
    resumed, turns.served = turns.served, []
    newcomers = sum([demand.is_newcomer for demand in demands])
    if 0 < newcomers < len(demands):
        turns.play_out([_cautiously(demand) if demand.is_newcomer else demand for demand in demands])
    turns.play_out(demands)
    return Shares(turns.budgets, [*resumed, *turns.served], turns.broken_off, turns.owed)


def _cautiously(demand: Demand) -> Demand:
    return demand._replace(room=min(demand.room, NEWCOMER_SLOTS))


def _alone(demand: Demand, *, slots: int, free: int, owed: int) -> Shares:
    """Give it what it may take. There may be others behind it, for whom there is no slot: its turns count."""
    webhook_id, weight, held, room, share, _ = demand
    budget = min(room, slots, most_more(held, free=free, share=share))
    if budget <= 0:
        return Shares({})
    left = ((owed or weight) - budget) % weight if budget == slots and budget < room else 0
    return Shares({webhook_id: budget}, (), webhook_id if left else None, left)


def _all_can_have_all(demands: Sequence[Demand], *, slots: int, free: int) -> bool:
    """Whether nothing has to be shared out: each would be within its share even when all have what they want."""
    wanted = sum([demand.room for demand in demands])
    if wanted > slots:
        return False
    free -= wanted
    for _, _, held, room, share, _ in demands:
        holds = held + room
        if holds > share * (free + holds):
            return False
    return True


class _Turns:
    """What has been given so far, while one plan is made."""

    def __init__(self, *, slots: int, free: int) -> None:
        self.slots = slots
        self.free = free
        self.budgets: dict[WebhookId, int] = {}
        self.served: list[WebhookId] = []
        self.broken_off: WebhookId | None = None
        self.owed = 0

    def play_out(self, demands: Sequence[Demand]) -> None:
        """Play rounds until there are no slots, or nobody can take more."""
        while self.slots and demands:
            self.served.clear()  # A whole round leaves the ring as it was.
            demands = self.play(
                demands, each=max(1, self.slots // sum([demand.weight for demand in demands]))
            )

    def play(self, demands: Sequence[Demand], *, each: int) -> list[Demand]:
        """Let each have a turn, worth its weight *each* times, while there are slots; return who could take more."""
        slots, free, budgets, served = self.slots, self.free, self.budgets, self.served
        unsated: list[Demand] = []
        for demand in demands:
            webhook_id, weight, held, room, share, _ = demand
            has = budgets.get(webhook_id, 0)
            held += has
            room -= has
            if room < 1:
                continue
            # `most_more`, written out: this is done for every webhook of every claim.
            most = int(share * (free + held)) - held
            if most < 1:
                if held:
                    continue
                most = 1
            turn = each * weight
            got = min(room, most)
            got = min(got, turn)
            got = min(got, slots)
            budgets[webhook_id] = has + got
            slots -= got
            free -= got
            if slots:
                served.append(webhook_id)
                if got == turn and got < room:
                    unsated.append(demand)
                continue
            if got < turn and got < room:
                self.broken_off, self.owed = webhook_id, turn - got
            else:
                served.append(webhook_id)
            break
        self.slots, self.free = slots, free
        return unsated
