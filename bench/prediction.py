"""How good the prediction of failures is: synthetic histories, replayed through the model as a worker would.

Four kinds of webhook, by a seeded die. *Sudden* ones are well until they are gone: nobody can foresee that. *Fading*
ones become slow, then fail here and there, then are gone. *Nightly* ones fail for some minutes at the same hour each
day. *Nervous* ones have slow and failing spells all the time and are never gone; false alarms come from such.

An alarm is right where the plain breaker opens within `RIGHT_SECONDS`. An opening is foreseen where an alarm came
before it within that time; how long before is its lead. The plain breaker itself is right by definition, and never
ahead. The first half of the time is for learning; the second is judged.
"""

from __future__ import annotations

import heapq
import random
import statistics
from collections.abc import Iterator
from typing import Any, Final

import attrs

from pggit_reactor.core.risk import FEATURES, RiskModel, WebhookFigures, has_become_at_risk

RIGHT_SECONDS: Final = 120.0
OPEN_SECONDS: Final = 60.0
"""An open breaker lets nothing through for so long, and then one attempt."""
HOUR_SECONDS: Final = 3600.0
DAY_SECONDS: Final = 24 * HOUR_SECONDS
MEAN_GAP_SECONDS: Final = 3.0
KINDS: Final = ("sudden", "fading", "nightly", "nervous")
WEBHOOKS_A_KIND: Final = 8
DAYS: Final = 4.0
SEED: Final = 20_261_124
TIMEOUT_SECONDS: Final = 5.0


@attrs.frozen(kw_only=True)
class Spell:
    """A time in which a receiver is not itself. Both shares may grow through it."""

    begin: float
    end: float
    slower: tuple[float, float] = (1.0, 1.0)
    """Times as slow, at its begin and at its end."""
    failing: tuple[float, float] = (0.0, 0.0)
    """The share of attempts that fail."""


@attrs.define(eq=False)
class Player:
    """One webhook: its history, its breaker, and what was said of it."""

    kind: str
    spells: list[Spell]
    draw: random.Random
    usual_seconds: float
    figures: WebhookFigures = attrs.field(factory=WebhookFigures)
    open_until: float = 0.0
    is_open: bool = False
    alarms: list[float] = attrs.field(factory=list)
    openings: list[float] = attrs.field(factory=list)

    def attempts(self, index: int, end: float) -> Iterator[tuple[float, int, bool, float]]:
        """Yield the time, the webhook, whether it failed and how long it took, of all attempts."""
        at, spells = 0.0, iter(self.spells)
        spell = next(spells, None)
        while (at := at + self.draw.expovariate(1.0 / MEAN_GAP_SECONDS)) < end:
            while spell is not None and spell.end <= at:
                spell = next(spells, None)
            slower, failing = 1.0, 0.002
            if spell is not None and spell.begin <= at:
                through = (at - spell.begin) / (spell.end - spell.begin)
                slower = spell.slower[0] + (spell.slower[1] - spell.slower[0]) * through
                failing = max(failing, spell.failing[0] + (spell.failing[1] - spell.failing[0]) * through)
            seconds = self.usual_seconds * slower * self.draw.lognormvariate(0.0, 0.3)
            yield at, index, self.draw.random() < failing, min(seconds, TIMEOUT_SECONDS)

    def take(self, model: RiskModel, at: float, failed: bool, seconds: float) -> None:
        """Play one attempt, where the breaker lets it through."""
        if at < self.open_until:
            return
        if self.is_open and failed:
            self.open_until = at + OPEN_SECONDS
            return
        self.is_open = False
        risk = model.ended(self.figures, failed=failed, seconds=seconds, now=at, wall=at)
        if self.figures.is_open:
            self.is_open, self.open_until = True, at + OPEN_SECONDS
            self.openings.append(at)
        elif risk is not None and has_become_at_risk(self.figures, risk):
            self.alarms.append(at)


def measure(*, days: float = DAYS, webhooks_a_kind: int = WEBHOOKS_A_KIND) -> dict[str, Any]:
    """Replay all histories, merged in time, through one model; return figures by kind and of all."""
    end = days * DAY_SECONDS
    model = RiskModel()
    players = [
        _player(kind, random.Random(f"{SEED} {kind} {number}"), end)
        for kind in KINDS
        for number in range(webhooks_a_kind)
    ]
    for at, index, failed, seconds in heapq.merge(
        *(player.attempts(index, end) for index, player in enumerate(players))
    ):
        players[index].take(model, at, failed, seconds)
    kinds = {
        kind: _figures([player for player in players if player.kind == kind], since=end / 2) for kind in KINDS
    }
    return {
        "kinds": {**kinds, "all": _figures(players, since=end / 2)},
        "weights": {"bias": model.bias, **dict(zip(FEATURES, model.weights, strict=True))},
        "days": days,
        "webhooks": len(players),
    }


def table(document: dict[str, Any]) -> str:
    """Return the figures for people, the plain breaker beside them."""
    lines = ["webhooks   openings  alarms  precision  recall  median lead, s"]
    for kind, found in document["kinds"].items():
        cells = [found["precision"], found["recall"], found["lead_seconds"]]
        shown = ["-" if cell is None else f"{cell:.2f}" for cell in cells]
        lines.append(
            f"{kind:9}  {found['openings']:8}  {found['alarms']:6}  {shown[0]:>9}  {shown[1]:>6}  {shown[2]:>14}"
        )
    lines.append("the plain breaker: precision 1, recall 1, lead 0, of all")
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in document["weights"].items())
    return "\n".join([*lines, f"weights after {document['days']:g} days: {weights}"])


def _player(kind: str, draw: random.Random, end: float) -> Player:
    spells = {"sudden": _sudden, "fading": _fading, "nightly": _nightly, "nervous": _nervous}[kind](draw, end)
    return Player(kind=kind, spells=[*spells], draw=draw, usual_seconds=draw.uniform(0.02, 0.4))


def _sudden(draw: random.Random, end: float) -> Iterator[Spell]:
    at = 0.0
    while (at := at + draw.expovariate(1.0 / (6 * HOUR_SECONDS)) + HOUR_SECONDS) < end:
        yield Spell(begin=at, end=at + draw.uniform(60, 900), failing=(1.0, 1.0))


def _fading(draw: random.Random, end: float) -> Iterator[Spell]:
    at = 0.0
    while (at := at + draw.expovariate(1.0 / (4 * HOUR_SECONDS)) + HOUR_SECONDS) < end:
        slow, failing, gone = at + draw.uniform(60, 300), 0.0, 0.0
        failing = slow + draw.uniform(20, 120)
        gone = failing + draw.uniform(60, 600)
        slower = draw.uniform(3, 12)
        yield Spell(begin=at, end=slow, slower=(1.0, slower))
        yield Spell(begin=slow, end=failing, slower=(slower, slower * 1.5), failing=(0.02, 0.5))
        yield Spell(begin=failing, end=gone, slower=(slower, slower), failing=(0.95, 1.0))
        at = gone


def _nightly(draw: random.Random, end: float) -> Iterator[Spell]:
    begin = draw.uniform(0, 23) * HOUR_SECONDS
    while begin < end:
        at = begin + draw.uniform(0, 600)
        yield Spell(begin=at, end=at + 1500, slower=(1.5, 3.0), failing=(0.1, 0.9))
        begin += DAY_SECONDS


def _nervous(draw: random.Random, end: float) -> Iterator[Spell]:
    at = 0.0
    while (at := at + draw.expovariate(1.0 / (2 * HOUR_SECONDS)) + 600) < end:
        length = draw.uniform(60, 600)
        slower = draw.uniform(1.5, 6)
        yield Spell(
            begin=at, end=at + length, slower=(slower, slower), failing=(0.02, draw.uniform(0.02, 0.12))
        )
        at += length


def _figures(players: list[Player], *, since: float) -> dict[str, Any]:
    alarms = right = openings = 0
    leads: list[float] = []
    for player in players:
        for alarm in (at for at in player.alarms if at >= since):
            alarms += 1
            right += any(alarm <= opening <= alarm + RIGHT_SECONDS for opening in player.openings)
        for opening in (at for at in player.openings if at >= since):
            openings += 1
            before = [at for at in player.alarms if opening - RIGHT_SECONDS <= at < opening]
            leads += [opening - before[0]] if before else []
    return {
        "openings": openings,
        "alarms": alarms,
        "precision": right / alarms if alarms else None,
        "recall": len(leads) / openings if openings else None,
        "lead_seconds": statistics.median(leads) if leads else None,
    }
