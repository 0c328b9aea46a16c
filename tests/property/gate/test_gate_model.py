"""The sleep gate, checked over every interleaving of producers and workers.

Theory. A producer whose trigger finds the gate open commits without NOTIFY; the worker that wrote the value
it read, its *author*, answers for that row: it may sleep only once no such row can still appear unseen. The
model is an explicit-state search over the smallest steps that PostgreSQL promises to be atomic
(docs/decisions/0010-sleep-gate.md):

* a producer locks the queue, takes its xid with the row, reads the gate after that, and in the end becomes
  visible (leaves the list of running transactions) and only then delivers what it notified;
* whoever reads an open gate may find it lapsed, whatever the clocks do, so no step is needed for time;
* a row keeps the set of authors that let it be silent, so that a crash excuses the rows of the dead alone;
* one claim sees everything that is committed, so of unseen rows only the authors matter. With that, and with
  transaction ids replaced by their order, all parties may go round for ever in a finite space.

What is left out, because a claim sees it: leases, budgets, webhooks. What a claim of the real worker has to
do to deserve the name (discovery of webhooks that nobody hinted at) is in the decision record.
"""

from __future__ import annotations

from bisect import bisect
from collections import deque
from collections.abc import Iterator
from enum import IntEnum, StrEnum, auto
from typing import Final, NamedTuple

import pytest

CLOSED: Final = 0
STRAY: Final = -1  # Written by somebody who is dead, or whom everybody has given up: nobody answers.
# Bits of rows: the others are 1 << w for "silent by the leave of worker w"; a stray value has none.
NOTIFIED: Final = 1


class P(IntEnum):
    """Where a producer's transaction stands."""

    IDLE = auto()
    LOCKED = auto()  # Holds RowExclusiveLock on the queue, has no xid yet.
    READ_EARLY = auto()  # Only in the variant that reads the gate before its xid.
    WRITTEN = auto()  # Has its xid and an uncommitted row; the AFTER trigger has not read the gate.
    DECIDED = auto()  # Notifies at commit, or will be silent.
    PREPARED = auto()  # PREPARE TRANSACTION: the same xid, and no backend.
    VISIBLE = auto()  # Not running any more; has delivered nothing yet.


class W(IntEnum):
    """Where a worker stands."""

    GONE = auto()
    LOST = auto()  # Alive, without a connection: hears nothing.
    WOKEN = auto()  # Has to claim.
    AWAKE = auto()
    SET_ZERO = auto()  # Found its own value in the gate and is about to write 0.
    TAKE_X = auto()
    DRAIN = auto()
    WAIT = auto()  # Waits for the transactions on its list.
    LAST = auto()  # Nobody is left to wait for: one more claim.
    ASLEEP = auto()


class Bug(StrEnum):
    """Protocols that are wrong, each in one step. The search has to find them."""

    NO_DRAIN = auto()
    X_IS_SNAPSHOT_XMAX = auto()
    NOTHING_BUT_XMIN = auto()  # Right for the rows, but a writer elsewhere keeps the worker awake for ever.
    X_BEFORE_CLOSING = auto()  # The xid of the very transaction that calls setval on a logged sequence.
    NO_LAST_CLAIM = auto()
    SLEEP_WITHOUT_CLOSING = auto()
    ERASED_MEANS_FREE = auto()  # "The value is not mine any more, so nobody is silent on my account."
    GIVE_UP_WAITING = auto()
    LIST_BEFORE_CLOSING = auto()
    LIST_OF_BACKENDS = auto()  # By pid: that of a prepared transaction is null.
    READ_BEFORE_XID = auto()  # A BEFORE trigger.
    FORGET_WAKE_UP_AFTER_CLAIM = auto()
    RECONNECT_WITHOUT_DRAIN = auto()
    LEAVE_WITHOUT_DRAIN = auto()
    LEAVE_WITHOUT_NOTIFYING = auto()


class Producer(NamedTuple):
    pc: int = P.IDLE
    xid: int = 0  # While it runs.
    row: int = 0  # Bits of what its statements decided.
    seen: int = CLOSED  # READ_EARLY: the author of the value that was read.
    awaited: int = 0  # Bits of the workers on whose list it is.


class Worker(NamedTuple):
    pc: int = W.ASLEEP
    x: int = 0  # While it drains.
    answers: bool = False  # May have left producers silent since its last drain.
    woken: bool = False  # A notification waits in its channel of one.
    leaving: bool = False  # SIGTERM: claims nothing any more.


class State(NamedTuple):
    gate: int
    unseen: int  # Bits of committed rows that no claim has seen.
    foreign: int  # xid of a writer that never comes near the queue, or 0.
    producers: tuple[Producer, ...]
    workers: tuple[Worker, ...]

    def with_producer(self, i: int, producer: Producer) -> State:
        return self._replace(producers=(*self.producers[:i], producer, *self.producers[i + 1 :]))

    def with_worker(self, w: int, worker: Worker) -> State:
        return self._replace(workers=(*self.workers[: w - 1], worker, *self.workers[w:]))

    def notify(self) -> State:
        deaf = (W.GONE, W.LOST)
        return self._replace(
            workers=tuple(w if w.pc in deaf else w._replace(woken=True) for w in self.workers)
        )

    def release(self, w: int) -> State:
        """Return the state after worker *w* threw its list away."""
        kept = ~(1 << w)
        return self._replace(producers=tuple(p._replace(awaited=p.awaited & kept) for p in self.producers))

    def list_running(self, w: int, *, below: int | None = None) -> State:
        """Return the state with all that hold the queue, with an xid under *below*, on the list of *w*."""
        return self._replace(
            producers=tuple(
                p._replace(awaited=p.awaited | 1 << w) if p.xid and (below is None or p.xid < below) else p
                for p in self.producers
            )
        )

    @property
    def next_xid(self) -> int:
        return 1 + max(*(p.xid for p in self.producers), *(w.x for w in self.workers), self.foreign)

    @property
    def xmin(self) -> int:
        """The lowest running xid; a snapshot's xmax caps it, which an X that has ended is always below."""
        running = (*(p.xid for p in self.producers), self.foreign)
        return min(filter(None, running), default=self.next_xid)


class Step(NamedTuple):
    word: str
    state: State
    calm: bool = True  # Brings the system to rest: no new transaction, opening or fault.


def normal(s: State) -> State:
    """Return the one state that stands for all with the same futures as *s*.

    Of a transaction id only its place among the X of those who drain matters; producers are alike.
    """
    marks = sorted(w.x for w in s.workers if w.x)
    place = [2 * bisect(marks, p.xid) + 1 if p.xid else 0 for p in s.producers]
    producers = [
        p if p.xid == xid else p._replace(xid=xid) for p, xid in zip(s.producers, place, strict=True)
    ]
    return s._replace(
        foreign=2 * bisect(marks, s.foreign) + 1 if s.foreign else 0,
        producers=tuple(sorted(producers)),
        workers=tuple(w._replace(x=2 * bisect(marks, w.x)) if w.x else w for w in s.workers),
    )


def sorted_workers(s: State) -> State:
    """Return *s* with its workers sorted and renumbered, for they are alike too; it halves a large space."""
    order = sorted(range(len(s.workers)), key=s.workers.__getitem__)
    if order == list(range(len(order))):
        return s
    new = {old + 1: number for number, old in enumerate(order, 1)}

    def renumbered(bits: int) -> int:
        return bits & NOTIFIED | sum(1 << new[w] for w in new if bits & 1 << w)

    return s._replace(
        gate=new.get(s.gate, s.gate),
        unseen=renumbered(s.unseen),
        producers=tuple(
            sorted(p._replace(row=renumbered(p.row), awaited=renumbered(p.awaited)) for p in s.producers)
        ),
        workers=tuple(s.workers[old] for old in order),
    )


def decision(author: int) -> int:
    return NOTIFIED if author == CLOSED else 0 if author == STRAY else 1 << author


class Model(NamedTuple):
    """The steps of every party."""

    producers: int
    workers: int
    bug: Bug | None = None
    faults: bool = False  # Crashes, lost connections, restarts, stray values.
    leaving: bool = False
    prepared: bool = False
    foreign: bool = False

    def start(self) -> State:
        return State(CLOSED, 0, 0, (Producer(),) * self.producers, (Worker(),) * self.workers)

    def steps(self, s: State) -> Iterator[Step]:
        for i, p in enumerate(s.producers):
            if i == 0 or p != s.producers[i - 1]:  # They are sorted, and equal ones do equal things.
                yield from self._producer(s, i, p)
        for w, worker in enumerate(s.workers, 1):
            yield from self._faults(s, w, worker) if self.faults else ()
            yield from self._worker(s, w, worker)
        if self.foreign and s.foreign:
            yield Step("foreign writer ends", s._replace(foreign=0), calm=False)
        elif self.foreign:
            yield Step("foreign writer takes an xid", s._replace(foreign=s.next_xid), calm=False)
        if self.faults and s.gate != STRAY:
            # A late statement of a connection given up, a restored backup, somebody's hand.
            yield Step("stray value opens the gate", s._replace(gate=STRAY), calm=False)

    def _producer(self, s: State, i: int, p: Producer) -> Iterator[Step]:
        match p.pc:
            case P.IDLE:
                yield Step("producer locks the queue", s.with_producer(i, Producer(pc=P.LOCKED)), calm=False)
            case P.LOCKED if self.bug is Bug.READ_BEFORE_XID:
                for author in {CLOSED, s.gate}:
                    yield Step(
                        f"trigger reads {author}",
                        s.with_producer(i, p._replace(pc=P.READ_EARLY, seen=author)),
                    )
            case P.LOCKED:
                yield Step("producer writes", s.with_producer(i, p._replace(pc=P.WRITTEN, xid=s.next_xid)))
            case P.READ_EARLY:
                written = Producer(pc=P.DECIDED, xid=s.next_xid, row=decision(p.seen))
                yield Step("producer writes", s.with_producer(i, written))
            case P.WRITTEN:
                for author in {CLOSED, s.gate}:
                    decided = p._replace(pc=P.DECIDED, row=p.row | decision(author))
                    yield Step(f"trigger reads {author}", s.with_producer(i, decided))
            case P.DECIDED:
                yield from self._ends(s, i, p)
                yield Step("producer writes again", s.with_producer(i, p._replace(pc=P.WRITTEN)), calm=False)
                if self.prepared and not p.row & NOTIFIED:
                    awaited = 0 if self.bug is Bug.LIST_OF_BACKENDS else p.awaited
                    prepared = p._replace(pc=P.PREPARED, awaited=awaited)
                    yield Step("producer prepares", s.with_producer(i, prepared), calm=False)
            case P.PREPARED:
                yield from self._ends(s, i, p)
            case P.VISIBLE:
                ended = s.with_producer(i, Producer())
                yield Step("notification is delivered", ended.notify())

    def _ends(self, s: State, i: int, p: Producer) -> Iterator[Step]:
        ended = Producer(pc=P.VISIBLE) if p.row & NOTIFIED else Producer()
        visible = s.with_producer(i, ended)._replace(unseen=s.unseen | p.row)
        yield Step("row becomes visible", visible)
        yield Step("producer rolls back", s.with_producer(i, Producer()))

    def _faults(self, s: State, w: int, me: Worker) -> Iterator[Step]:
        if me.pc == W.GONE:  # Whoever starts listens first, then claims.
            yield Step(f"{w} starts", s.with_worker(w, Worker(pc=W.WOKEN)), calm=False)
            return
        kept = ~(1 << w)
        buried = s.with_worker(w, Worker(pc=W.GONE))._replace(
            gate=STRAY if s.gate == w else s.gate,
            unseen=s.unseen & kept,
            producers=tuple(p._replace(row=p.row & kept, awaited=p.awaited & kept) for p in s.producers),
        )
        yield Step(f"{w} crashes", buried, calm=False)
        if me.pc != W.LOST:
            lost = s.with_worker(w, Worker(pc=W.LOST, answers=me.answers)).release(w)
            yield Step(f"{w} loses its connections", lost, calm=False)

    def _worker(self, s: State, w: int, me: Worker) -> Iterator[Step]:
        match me.pc:
            case W.LOST:
                answers = me.answers and self.bug is not Bug.RECONNECT_WITHOUT_DRAIN
                yield Step(f"{w} listens again", s.with_worker(w, Worker(pc=W.WOKEN, answers=answers)))
            case W.ASLEEP if me.woken:
                yield self._takes_wake_up(s, w, me)
            case W.WOKEN:
                yield Step(f"{w} claims", s.with_worker(w, me._replace(pc=W.AWAKE))._replace(unseen=0))
            case W.AWAKE:
                if me.woken:
                    yield self._takes_wake_up(s, w, me)
                yield from self._claims_and_opens(s, w, me)
                yield from self._closes(s, w, me)
            case W.SET_ZERO:
                yield Step(f"{w} writes 0", s.with_worker(w, me._replace(pc=W.TAKE_X))._replace(gate=CLOSED))
            case W.TAKE_X:
                yield from self._takes_x(s, w, me)
            case W.DRAIN | W.WAIT:
                if not me.leaving:
                    yield from self._claims_and_opens(s, w, me)
                yield from self._checks(s, w, me)
            case W.LAST:
                yield self._ends_drain(s, w, me)

    def _takes_wake_up(self, s: State, w: int, me: Worker) -> Step:
        if self.bug is not Bug.FORGET_WAKE_UP_AFTER_CLAIM:
            return Step(f"{w} wakes", s.with_worker(w, me._replace(pc=W.WOKEN, woken=False)))
        if me.pc == W.ASLEEP:
            return Step(f"{w} wakes", s.with_worker(w, me._replace(pc=W.WOKEN)))
        return Step(f"{w} empties its channel", s.with_worker(w, me._replace(woken=False)))

    def _claims_and_opens(self, s: State, w: int, me: Worker) -> Iterator[Step]:
        if s.unseen:
            yield Step(f"{w} claims", s._replace(unseen=0))
        if s.gate != w or me.pc != W.AWAKE:
            # It answers from before the statement is sent, so that no lost reply can make it forget.
            opened = s.with_worker(w, me._replace(pc=W.AWAKE, x=0, answers=True)).release(w)
            yield Step(f"{w} opens", opened._replace(gate=w), calm=False)

    def _closes(self, s: State, w: int, me: Worker) -> Iterator[Step]:
        for leaving in (False, True) if self.leaving else (False,):
            it = me._replace(leaving=leaving)
            word, calm = ("closes to leave", False) if leaving else ("closes", True)
            zero = s._replace(gate=CLOSED)
            if not me.answers:
                yield Step(
                    f"{w} rests", s.with_worker(w, it._replace(pc=W.LAST if leaving else W.ASLEEP)), calm
                )
            elif self.bug is Bug.SLEEP_WITHOUT_CLOSING:
                yield Step(f"{w} sleeps", s.with_worker(w, it._replace(pc=W.ASLEEP, answers=False)))
            elif self.bug is Bug.LEAVE_WITHOUT_DRAIN and leaving:
                yield Step(f"{w} {word}", zero.with_worker(w, it._replace(pc=W.LAST)))
            elif self.bug is Bug.X_BEFORE_CLOSING:
                early = s.with_worker(w, it._replace(pc=W.SET_ZERO, x=s.next_xid))
                yield Step(f"{w} takes the xid of its setval", early)
            elif self.bug is Bug.LIST_BEFORE_CLOSING:
                yield Step(f"{w} lists holders", s.with_worker(w, it._replace(pc=W.SET_ZERO)).list_running(w))
            else:
                # Both ways are right: write 0 at once, or read first and write 0 only over one's own value.
                yield Step(f"{w} {word}", zero.with_worker(w, it._replace(pc=W.TAKE_X)), calm)
                free = W.LAST if self.bug is Bug.ERASED_MEANS_FREE else W.TAKE_X
                after_read = W.SET_ZERO if s.gate == w else free
                yield Step(f"{w} {word}, reads {s.gate}", s.with_worker(w, it._replace(pc=after_read)), calm)

    def _takes_x(self, s: State, w: int, me: Worker) -> Iterator[Step]:
        match self.bug:
            case Bug.NO_DRAIN:
                yield Step(f"{w} does not drain", s.with_worker(w, me._replace(pc=W.LAST)))
            case Bug.X_IS_SNAPSHOT_XMAX:
                # It is the latest completed xid plus one, and so may be that of any running transaction.
                for x in {p.xid for p in s.producers if p.xid}:
                    yield Step(f"{w} takes xmax for X", s.with_worker(w, me._replace(pc=W.DRAIN, x=x)))
            case Bug.X_BEFORE_CLOSING:
                yield Step(f"{w} goes on", s.with_worker(w, me._replace(pc=W.DRAIN)))
            case Bug.LIST_BEFORE_CLOSING:
                yield Step(f"{w} goes on", s.with_worker(w, me._replace(pc=W.WAIT)))
            case _:
                # One step with its commit: a running X could only delay others.
                yield Step(f"{w} takes X", s.with_worker(w, me._replace(pc=W.DRAIN, x=s.next_xid)))

    def _checks(self, s: State, w: int, me: Worker) -> Iterator[Step]:
        drained = s.with_worker(w, me._replace(pc=W.LAST, x=0))
        if me.pc == W.WAIT:
            if not any(p.awaited & 1 << w for p in s.producers):
                yield Step(f"{w} finds none of its list running", drained)
        elif self.bug is Bug.GIVE_UP_WAITING:
            yield Step(f"{w} gives up", drained)
        elif s.xmin >= me.x:
            yield Step(f"{w} finds xmin at X", drained)
        elif self.bug is not Bug.NOTHING_BUT_XMIN:
            # At any moment after X, early or late: so the real worker may choose when.
            listed = s.with_worker(w, me._replace(pc=W.WAIT, x=0)).list_running(w, below=me.x)
            yield Step(f"{w} lists who holds the queue below X", listed)

    def _ends_drain(self, s: State, w: int, me: Worker) -> Step:
        if me.leaving and self.bug is Bug.LEAVE_WITHOUT_NOTIFYING:
            return Step(f"{w} leaves", s.with_worker(w, Worker(pc=W.GONE)))
        if me.leaving:
            # Whoever lives claims; where nobody lives, whoever starts next does.
            handed = s.unseen & ~(1 << w) | (NOTIFIED if s.unseen & 1 << w else 0)
            return Step(
                f"{w} notifies and leaves",
                s.with_worker(w, Worker(pc=W.GONE)).notify()._replace(unseen=handed),
            )
        rested = s.with_worker(w, me._replace(pc=W.AWAKE, answers=False))
        if self.bug is Bug.NO_LAST_CLAIM:
            return Step(f"{w} takes itself for drained", rested)
        return Step(f"{w} claims for the last time", rested._replace(unseen=0))


def complaint(s: State) -> str | None:
    """Say which committed row would wait for the poll in *s*, though nobody who answers for it is dead."""
    resting = [w.pc == W.ASLEEP and not w.woken for w in s.workers]
    for w, worker in enumerate(s.workers, 1):
        if s.unseen & 1 << w and (resting[w - 1] or worker.pc == W.GONE):
            return f"a row is silent by the leave of worker {w}, who is {W(worker.pc).name}"
    coming = any(p.pc == P.VISIBLE for p in s.producers)
    live = [rests for rests, worker in zip(resting, s.workers, strict=True) if worker.pc != W.GONE]
    if s.unseen and not coming and live and all(live):
        return "a row was notified, and all sleep"
    return None


def at_rest(s: State) -> bool:
    asleep = all(w.pc == W.GONE or (w.pc == W.ASLEEP and not w.woken) for w in s.workers)
    return asleep and all(p.pc == P.IDLE for p in s.producers)


class Search(NamedTuple):
    states: int
    violation: str | None  # The complaint and the shortest way to it.
    stuck: str | None  # The shortest way to a state from which calm steps do not lead to rest.


def search(model: Model, *, renumber: bool = False) -> Search:
    """Walk every reachable state, breadth first; stop at the first complaint."""
    first = normal(model.start())
    number = {first: 0}
    states = [first]
    came: list[tuple[int, str]] = [(0, "start")]
    calm_before: list[list[int]] = [[]]
    resting: list[int] = []
    for here, state in enumerate(states):  # It grows while it is walked.
        if wrong := complaint(state):
            return Search(len(states), f"{wrong}: {_way(came, here)}", None)
        if at_rest(state):
            resting.append(here)
        for word, successor, calm in model.steps(state):
            key = sorted_workers(normal(successor)) if renumber else normal(successor)
            there = number.setdefault(key, len(states))
            if there == len(states):
                states.append(key)
                came.append((here, word))
                calm_before.append([])
            if calm:
                calm_before[there].append(here)
    return Search(len(states), None, _stuck(came, calm_before, resting))


def _stuck(came: list[tuple[int, str]], calm_before: list[list[int]], resting: list[int]) -> str | None:
    reaches = set(resting)
    todo = deque(resting)
    while todo:
        for before in calm_before[todo.popleft()]:
            if before not in reaches:
                reaches.add(before)
                todo.append(before)
    lost = next((state for state in range(len(came)) if state not in reaches), None)
    return None if lost is None else _way(came, lost)


def _way(came: list[tuple[int, str]], state: int) -> str:
    words = []
    while state:
        state, word = came[state]
        words.append(word)
    return "; ".join(reversed(words))


FEATURES_OF_BUGS: Final = {
    Bug.ERASED_MEANS_FREE: {"workers": 2},
    Bug.LIST_OF_BACKENDS: {"prepared": True},
    Bug.RECONNECT_WITHOUT_DRAIN: {"faults": True},
    Bug.LEAVE_WITHOUT_DRAIN: {"leaving": True},
    Bug.LEAVE_WITHOUT_NOTIFYING: {"leaving": True},
}


@pytest.mark.parametrize(
    "model",
    [
        Model(producers=2, workers=1, faults=True, leaving=True, prepared=True, foreign=True),
        Model(producers=1, workers=2),
        pytest.param(
            Model(producers=1, workers=2, faults=True, leaving=True, prepared=True, foreign=True),
            marks=pytest.mark.long,
        ),
        pytest.param(Model(producers=2, workers=2, faults=True), marks=pytest.mark.long),
        pytest.param(Model(producers=1, workers=3), marks=pytest.mark.long),
    ],
    ids=str,
)
def test_no_row_waits_for_the_poll_and_every_drain_ends(model: Model) -> None:
    """The poll has no step in the model at all: whatever is seen is seen without it."""
    found = search(model, renumber=True)

    assert found.violation is None
    assert found.stuck is None
    assert found.states > 10_000  # Else the parties did not get far enough to prove anything.


@pytest.mark.parametrize("bug", [bug for bug in Bug if bug is not Bug.NOTHING_BUT_XMIN])
def test_a_protocol_that_loses_a_wake_up_is_found_out(bug: Bug) -> None:
    model = Model(**{"producers": 1, "workers": 1, "bug": bug, **FEATURES_OF_BUGS.get(bug, {})})

    assert search(model).violation is not None


def test_a_worker_that_waits_for_xmin_alone_is_kept_awake_by_a_writer_elsewhere() -> None:
    found = search(Model(producers=1, workers=1, bug=Bug.NOTHING_BUT_XMIN, foreign=True))

    assert found.violation is None
    assert found.stuck is not None
    assert "foreign writer takes an xid" in found.stuck


def test_a_second_opener_does_not_help_a_worker_that_thinks_itself_erased() -> None:
    """Why closing is two steps: not writing 0 over another's value is right, not draining then is wrong."""
    found = search(Model(producers=1, workers=2, bug=Bug.ERASED_MEANS_FREE))

    assert found.violation is not None
    assert "1 closes, reads 2; 1 claims for the last time; row becomes visible" in found.violation
