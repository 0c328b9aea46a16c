"""What the demo does and says, step by step. Each step waits for a state, none for a time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

import attrs

from pggit_reactor.cli.demonstration.page import Page
from pggit_reactor.cli.demonstration.producer import Alert, Committed, Producer
from pggit_reactor.cli.demonstration.registration import register
from pggit_reactor.cli.demonstration.stage import LEASE_SECONDS, POLL_SECONDS, Stage
from pggit_reactor.cli.demonstration.worker_process import Settled, WorkerProcess, open_worker
from pggit_reactor.db.connect import TrioConnection, open_connection
from pggit_reactor.runtime.clock import Clock

CALM: Final = (
    Alert(alert_id=1001, text="replication lag", value=42),
    Alert(alert_id=1002, text="disk 91 % full", value=91),
    Alert(alert_id=1003, text="long transaction", value=960),
    Alert(alert_id=1004, text="deadlock", value=2),
    Alert(alert_id=1005, text="sequence nearly used up", value=98),
)
IN_FLIGHT: Final = (
    Alert(alert_id=1006, text="checkpoint too frequent", value=7),
    Alert(alert_id=1007, text="connections at limit", value=100),
    Alert(alert_id=1008, text="autovacuum behind", value=3),
)
UNATTENDED: Final = (
    Alert(alert_id=1009, text="standby lost", value=1),
    Alert(alert_id=1010, text="archive command fails", value=5),
)
ALL: Final = (*CALM, *IN_FLIGHT, *UNATTENDED)

_LEFT_SQL: Final = """\
SELECT alert_id, delivery_status, leased_by,
       round(extract(epoch FROM lease_expires_at - clock_timestamp()), 1) AS seconds_left
FROM pggit.alert_delivery_queue
WHERE delivery_status <> 'delivered'
ORDER BY alert_id;"""
_COUNT_SQL: Final = """\
SELECT delivery_status, count(*) AS deliveries
FROM pggit.alert_delivery_queue
GROUP BY delivery_status;"""


@attrs.frozen(kw_only=True)
class Outcome:
    """What the demo proves, or fails to."""

    alerts: int
    arrived: int
    again: int
    """Alerts that arrived more than once."""
    same_id: bool
    bad_signatures: int
    delivered: int
    """As the database says it."""
    median_ms: float
    """From sending COMMIT to the whole request read by the receiver, of the alerts that nothing disturbed."""

    @property
    def good(self) -> bool:
        """Whether each alert arrived under its own id, and is known to have."""
        return (
            self.arrived == self.delivered == self.alerts
            and self.again >= len(IN_FLIGHT)
            and self.same_id
            and not self.bad_signatures
        )

    def line(self, seconds: float) -> str:
        """Return the summary."""
        return (
            f"demo: {'ok' if self.good else 'failed'} alerts={self.alerts} arrived={self.arrived} "
            f"lost={self.alerts - self.arrived} twice={self.again} same_id={'yes' if self.same_id else 'no'} "
            f"bad_signatures={self.bad_signatures} median_ms={self.median_ms:.1f} seconds={seconds:.1f}"
        )


@attrs.define(eq=False, kw_only=True)
class Story:
    """One telling."""

    page: Page
    stage: Stage
    clock: Clock
    _settled: dict[int, Settled] = attrs.field(factory=dict, init=False)
    """What the workers said, by alert id."""

    async def tell(self) -> Outcome:
        """Go through all steps."""
        self._introduce()
        dsn = self.stage.postgres.dsn
        async with open_connection(dsn, application_name="pggit-reactor demo") as connection:
            async with open_worker(self.stage.worker_environ("demo-1"), folder=self.stage.folder) as first:
                await first.wait_ready()
                self._show_parts(first)
                producer = await self._register(connection)
                await self._deliver(producer, first)
                await self._kill(producer, first)
            async with open_worker(self.stage.worker_environ("demo-2"), folder=self.stage.folder) as second:
                await self._recover(producer, second)
            return await self._prove(producer)

    # -- steps

    def _introduce(self) -> None:
        self.page.title("pggit-reactor: INSERT a row, and a signed webhook is on its way when COMMIT returns")
        self.page.say(
            f"Everything runs on this machine, in {self.stage.folder}, and is gone at the end. Each step says "
            "what it proves; the last line says how it went."
        )

    def _show_parts(self, worker: WorkerProcess) -> None:
        postgres, count = self.stage.postgres, len(self.stage.migrated.applied)
        self.page.step(1, "The parts")
        self.page.facts(
            [
                (
                    "PostgreSQL",
                    f"version {postgres.major} on 127.0.0.1:{postgres.port}; {count} migration(s)",
                ),
                ("receiver", f"{self.stage.receiver.url}, with TLS; verifies every signature"),
                ("worker", f"process {worker.pid}; it sleeps in LISTEN and waits for a COMMIT"),
            ]
        )

    async def _register(self, connection: TrioConnection) -> Producer:
        receiver = self.stage.receiver
        self.page.step(2, "Register the receiver as a webhook")
        self.page.code(f"$ pggit-reactor webhook add {receiver.url} --name demo")
        registered = await register(connection, self.stage.settings, url=receiver.url)
        receiver.secret = registered.secret.reveal()
        self.page.say(
            f"It is webhook {registered.webhook_id}. A new secret was made for it: the worker signs with it, the "
            "receiver checks with it, and the database holds it only encrypted."
        )
        return Producer(connection, self.clock, webhook_id=registered.webhook_id)

    async def _deliver(self, producer: Producer, worker: WorkerProcess) -> None:
        first, *others = CALM
        self.page.step(3, "INSERT alerts by plain SQL")
        self.page.code(f"BEGIN;\n{producer.sql([first])}\nCOMMIT;")
        self.page.say(
            f"... and so on, one transaction each, for {others[0].alert_id} to {others[-1].alert_id}."
        )
        for alert in CALM:
            await producer.insert([alert])
            await self._arrived(producer, worker, [alert])
        self.page.gap()
        self._timeline(producer, CALM)
        self.page.gap()
        self.page.say(
            "These are milliseconds since the producer sent COMMIT. commit: the producer has its answer. wake: the "
            "worker has heard of the row. claim: the row is leased to the worker. sent: the signed request has "
            "left. answer: the receiver has verified the signature and said 204. settled: that is written in the "
            "database. The first alert also had to open the TLS connection, which is then kept."
        )
        self.page.say("This proves: nothing waits for a poll. The COMMIT itself wakes the worker.")

    async def _kill(self, producer: Producer, worker: WorkerProcess) -> None:
        receiver, ids = self.stage.receiver, _ids(IN_FLIGHT)
        receiver.holding = ids
        self.page.step(4, "Kill the worker in mid-delivery")
        self.page.say(f"The receiver will read the next {len(ids)} requests and hold its answers back.")
        self.page.code(f"BEGIN;\n{producer.sql(IN_FLIGHT)}\nCOMMIT;")
        await producer.insert(IN_FLIGHT)
        await receiver.wait_for(ids)
        await worker.kill()
        self.page.say(
            f"All {len(ids)} have arrived, none is answered. In that moment process {worker.pid} got SIGKILL, and "
            "could not save anything. Now no worker is there, and two more alerts are committed:"
        )
        self.page.code(f"BEGIN;\n{producer.sql(UNATTENDED)}\nCOMMIT;")
        await producer.insert(UNATTENDED)
        self.page.say("What the database knows:")
        self.page.code(_LEFT_SQL)
        columns = ("alert_id", "delivery_status", "leased_by", "seconds_left")
        self._rows(columns, await producer.rows(_LEFT_SQL))
        self.page.gap()
        self.page.say(
            "This proves: a claim is a lease, and the row is still pending under it. So nothing has to be repaired "
            f"after a crash: the lease runs out by itself ({LEASE_SECONDS} s here, 30 s by default)."
        )

    async def _recover(self, producer: Producer, worker: WorkerProcess) -> None:
        receiver, left = self.stage.receiver, (*IN_FLIGHT, *UNATTENDED)
        receiver.holding = ()
        self.page.step(5, "Start another worker")
        self.page.say(
            f"Process {worker.pid} delivers what is free at once, and what the dead worker held as soon as the lease "
            f"has run out, within {LEASE_SECONDS + POLL_SECONDS} s."
        )
        await self._arrived(producer, worker, left)
        await receiver.wait_for(_ids(IN_FLIGHT), times=2)
        self.page.gap()
        self._timeline(producer, left)
        self.page.gap()
        self.page.say("Milliseconds since COMMIT again; no wake, because the new worker looked for itself.")
        self.page.gap()
        self.page.table(
            ("alert", "delivery id in the request", "arrived", "first at", "again at"),
            [self._arrivals_row(producer, alert.alert_id) for alert in ALL],
            left=("delivery id in the request",),
        )
        self.page.gap()
        self.page.say(
            "This proves: no alert is lost. One whose answer was lost with the worker comes again, under the same "
            "id, so that a receiver which remembers ids acts on it once."
        )
        await worker.stop()

    async def _prove(self, producer: Producer) -> Outcome:
        receiver = self.stage.receiver
        self.page.step(6, "What the database says now")
        self.page.code(_COUNT_SQL)
        counts = await producer.rows(_COUNT_SQL)
        self._rows(("delivery_status", "deliveries"), counts)
        uids = await producer.uids()
        arrivals = {alert.alert_id: receiver.arrivals_of(alert.alert_id) for alert in ALL}
        return Outcome(
            alerts=len(ALL),
            arrived=sum(bool(each) for each in arrivals.values()),
            again=sum(len(each) > 1 for each in arrivals.values()),
            same_id=all(arrival.uid == uids[arrival.alert_id] for arrival in receiver.arrivals),
            bad_signatures=len(receiver.refused),
            delivered=sum(int(str(count)) for status, count in counts if status == "delivered"),
            median_ms=statistics.median(
                (arrivals[alert.alert_id][0].at - producer.commits[alert.alert_id].sent_at) * 1000
                for alert in CALM
            ),
        )

    # -- rows

    async def _arrived(self, producer: Producer, worker: WorkerProcess, alerts: Sequence[Alert]) -> None:
        """Wait until *alerts* are settled by *worker*, and keep what it says of them."""
        uids = await producer.uids()
        await worker.wait_settled([uids[alert.alert_id] for alert in alerts])
        self._settled.update({alert.alert_id: worker.settled[uids[alert.alert_id]] for alert in alerts})

    def _timeline(self, producer: Producer, alerts: Sequence[Alert]) -> None:
        self.page.table(
            ("alert", "commit", "wake", "claim", "sent", "answer", "settled"),
            [
                _timeline_row(alert, producer.commits[alert.alert_id], self._settled[alert.alert_id])
                for alert in alerts
            ],
        )

    def _rows(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        self.page.table(
            columns, [["" if value is None else str(value) for value in row] for row in rows], left=columns
        )

    def _arrivals_row(self, producer: Producer, alert_id: int) -> tuple[str, ...]:
        arrivals = self.stage.receiver.arrivals_of(alert_id)
        sent_at = producer.commits[alert_id].sent_at
        ids = {arrival.uid for arrival in arrivals}
        times = {1: "once", 2: "twice"}.get(len(arrivals), f"{len(arrivals)} times")
        return (
            str(alert_id),
            ", ".join(sorted(ids)),
            times,
            _milliseconds(arrivals[0].at - sent_at),
            _milliseconds(arrivals[-1].at - sent_at) if len(arrivals) > 1 else "",
        )


def _ids(alerts: Sequence[Alert]) -> tuple[int, ...]:
    return tuple(alert.alert_id for alert in alerts)


def _timeline_row(alert: Alert, commit: Committed, settled: Settled) -> tuple[str, ...]:
    marks = {name: at - commit.sent_at for name, at in settled.at.items()}
    return (
        str(alert.alert_id),
        _milliseconds(commit.answered_at - commit.sent_at),
        # Found by a look of its own: what woke the worker before was about other rows.
        _milliseconds(marks["woken"]) if marks.get("woken", -1.0) >= 0 else "-",
        *(_milliseconds(marks[name]) for name in ("claimed", "sent", "answered", "settled")),
    )


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.1f}"
