"""One attempt on the wire: a request out, its answer in, within one deadline.

What may happen twice, and only then: a request on a connection that was kept open fails before any octet of
an answer, which is what a receiver that closed it meanwhile looks like. It is sent once more on a fresh
connection.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Hashable, Sequence
from pathlib import PurePath
from time import perf_counter
from typing import Final

import attrs
import trio

from pggit_reactor.core.model import AttemptFailure, FailureKind, Phases
from pggit_reactor.core.url_policy import Target
from pggit_reactor.delivery.answers import AnswerReader
from pggit_reactor.delivery.connections import ConnectionPool
from pggit_reactor.delivery.dialer import Dialer
from pggit_reactor.delivery.failures import AttemptError, connection_lost, is_fault_of_tls
from pggit_reactor.delivery.tls import PUBLIC, TlsPolicy
from pggit_reactor.delivery.wire import Wire

BODY_SECONDS_MAX: Final = 1.0
"""From a head that has arrived: its answer counts already, so its body gets no more than this."""

OnPhase = Callable[[str, float], None]

_WAITING_FOR: Final = (
    ("resolved", "looking the name up"),
    ("connected", "connecting"),
    ("secured", "in the TLS handshake"),
    ("sent", "sending the request"),
    ("answered", "waiting for the head of the answer"),
)


@attrs.frozen(kw_only=True)
class Route:
    """Where a webhook's requests go, and over which connections."""

    owner: Hashable
    """The webhook: its connections are shared with nobody."""
    target: Target
    tls: TlsPolicy = PUBLIC
    connections: Hashable = attrs.field(
        init=False,
        repr=False,
        default=attrs.Factory(
            lambda self: (self.owner, self.target.host, self.target.port, self.tls.digest), takes_self=True
        ),
    )
    """The key of its connections. A webhook whose URL, pins or certificates change never uses an old one again."""


class Exchange:
    """One attempt. `run` it once; afterwards `failure` says why there is no answer, or `answer` holds it."""

    __slots__ = (
        "_dialer",
        "_marks",
        "_on_phase",
        "_parts",
        "_pool",
        "_route",
        "_scope",
        "_started_at",
        "address",
        "answer",
        "elapsed_seconds",
        "failure",
        "resent",
        "reused",
    )

    def __init__(
        self,
        *,
        dialer: Dialer,
        pool: ConnectionPool,
        route: Route,
        parts: Sequence[bytes],
        answer: AnswerReader,
        on_phase: OnPhase | None = None,
    ) -> None:
        self.answer = answer
        self.failure: AttemptFailure | None = None
        self.elapsed_seconds = 0.0
        self.address: str | None = None
        self.reused = False
        self.resent = False
        self._dialer = dialer
        self._pool = pool
        self._route = route
        self._parts = parts
        self._on_phase = on_phase
        self._marks: dict[str, float] = {}
        self._started_at = 0.0
        self._scope: trio.CancelScope | None = None

    @property
    def phases(self) -> Phases:
        """Return when each phase ended."""
        return Phases(**self._marks)

    async def run(self, deadline_seconds: float) -> None:
        """Make the attempt. Raises nothing but `Cancelled`; no connection stays behind that is not whole."""
        self._started_at = perf_counter()
        self._scope = scope = trio.CancelScope(deadline=trio.current_time() + deadline_seconds)
        with scope:
            try:
                await self._send()
            except AttemptError as error:
                self.failure = error.failure
            except Exception as error:  # noqa: BLE001  # the one supervisor of an attempt: counted as a crash
                self.failure = _crashed(error)
        if scope.cancelled_caught and self.answer.status is None:
            self.failure = self._too_late(deadline_seconds)
        self.elapsed_seconds = perf_counter() - self._started_at

    async def _send(self) -> None:
        wire = self._pool.take(self._route.connections)
        if wire is not None:
            self.reused = True
            self.address = wire.address
            try:
                await self._exchange(wire)
            except AttemptError:
                if self.answer.started:
                    raise
            else:
                return
            self.reused, self.resent = False, True
            self._marks.clear()
        wire = await self._dialer.dial(self._route.target, self._route.tls, self._mark)
        self.address = wire.address
        await self._exchange(wire)

    async def _exchange(self, wire: Wire) -> None:
        try:
            whole = await self._write(wire)
            await self._read(wire)
        except BaseException:
            wire.close()
            raise
        if whole and self.answer.reusable:
            self._pool.give(self._route.connections, wire)
        else:
            wire.close()

    async def _write(self, wire: Wire) -> bool:
        """Send the request; say whether all went out. Where it did not, an answer is there all the same."""
        try:
            for part in self._parts:
                if said := await wire.send(part):
                    self._take(said)
                    return False
        except OSError as error:
            # A receiver that refuses early answers, closes and resets: its answer waits in our socket.
            if is_fault_of_tls(error) or not await self._answered_before(wire):
                raise connection_lost(error, answer_began=self.answer.started) from error
            return False
        self._mark("sent")
        return True

    async def _answered_before(self, wire: Wire) -> bool:
        try:
            said = await wire.receive()
        except OSError as error:
            if is_fault_of_tls(error):  # an alert, such as one about our certificate
                raise connection_lost(error, answer_began=self.answer.started) from error
            return False
        if said:
            self._take(said)
        return bool(said)

    async def _read(self, wire: Wire) -> None:
        while not self.answer.complete:
            try:
                octets = await wire.receive()
            except OSError as error:
                if self.answer.status is None:
                    raise connection_lost(error, answer_began=self.answer.started) from error
                return
            if octets:
                self._take(octets)
                continue
            if self.answer.status is None:
                raise connection_lost(None, answer_began=self.answer.started)
            self.answer.feed_end()
            return

    def _take(self, octets: bytes) -> None:
        self.answer.feed(octets)
        if self.answer.status is not None and "answered" not in self._marks:
            self._mark("answered")
            if not self.answer.complete and self._scope is not None:
                self._scope.deadline = min(self._scope.deadline, trio.current_time() + BODY_SECONDS_MAX)

    def _mark(self, phase: str) -> None:
        self._marks[phase] = seconds = perf_counter() - self._started_at
        if self._on_phase is not None:
            self._on_phase(phase, seconds)

    def _too_late(self, deadline_seconds: float) -> AttemptFailure:
        pending = _WAITING_FOR[3:] if self.reused else _WAITING_FOR
        doing = next(text for phase, text in pending if phase not in self._marks)
        if self.answer.started:
            doing = "in the middle of the answer's head"
        detail = f"no answer within {deadline_seconds:g} s: {doing}"
        return AttemptFailure(kind=FailureKind.TIMEOUT, detail=detail)


def _crashed(error: Exception) -> AttemptFailure:
    """Return where *error* came from, without its text: nobody knows what that holds."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {PurePath(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return AttemptFailure(
        kind=FailureKind.INTERNAL, detail=f"unexpected {type(error).__name__}{where} in the sender"
    )
