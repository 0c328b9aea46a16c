"""`--processes N`: a supervisor of N workers, one core each.

The supervisor holds no database connection and no key. It starts the workers, restarts one that ends unasked,
passes signals on, and serves one `/metrics`, `/health` and `/ready` for all (`fleet_probes.py`). Each worker
is told two things through its environment: its own id, and a unix socket in a private directory to serve its
probes on.

Stopping: the workers bound their own drain; what is still there after it is killed, and its leases expire.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs
import trio

from pggit_reactor.errors import ConfigurationError
from pggit_reactor.observability.logs import get_logger
from pggit_reactor.runtime.child import Child, describe_status
from pggit_reactor.runtime.clock import Clock, SystemClock
from pggit_reactor.runtime.fleet_probes import FleetProbes, Member
from pggit_reactor.runtime.http_port import UNIX_PREFIX, HttpAddress, open_http_port
from pggit_reactor.runtime.signals import Command, Commands, open_commands
from pggit_reactor.runtime.supervisor import RestartBackoff

PROCESSES_MAX: Final = 256
ABORT_SECONDS: Final = 3.0
"""An aborted worker gives its leases back within 2 s (DESIGN 4), and has one more to end."""
INCURABLE_STATUSES: Final = (2, 4)
"""Usage or configuration, and too new a schema: another start would end the same way."""
UNIX_PATH_BYTES_MAX: Final = 104
"""Of a unix socket's path; the least of the systems that we know."""

_LEGACY_NAMES: Final = frozenset({"WORKER_ID"})
"""Would contradict what each worker is told under our own names, and make it warn."""

_log = get_logger("processes")


async def run_processes(
    count: int,
    *,
    command: Sequence[str],
    environ: Mapping[str, str],
    worker_id: str,
    host: str,
    port: int,
    drain_seconds: float,
    clock: Clock | None = None,
    task_status: trio.TaskStatus[HttpAddress] = trio.TASK_STATUS_IGNORED,
) -> int:
    """Run *count* workers until a signal stops them; return the exit status for this process.

    0: all ended well. 2 or 4: a worker ended so, and the rest were stopped for it. 1: anything else.
    `started` gives the address of the common port, once signals are heeded and every worker was started. Runs
    in the main thread.
    """
    if not 1 <= count <= PROCESSES_MAX:
        raise ConfigurationError(f"{count} processes; allowed: 1 to {PROCESSES_MAX} (flag --processes)")
    clock = clock or SystemClock()
    private = tempfile.TemporaryDirectory(prefix="pggit-", ignore_cleanup_errors=True)
    with private as directory, open_commands() as commands:
        fleet = _Fleet(
            members=_members(count, worker_id=worker_id, directory=Path(directory)),
            command=command,
            environ=environ,
            drain_seconds=drain_seconds,
            clock=clock,
        )
        async with (
            open_http_port(FleetProbes(fleet.members), host=host, port=port, clock=clock) as address,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(fleet.obey, commands)
            await fleet.run(address, task_status)
            nursery.cancel_scope.cancel()
        return fleet.exit_status()


def _members(count: int, *, worker_id: str, directory: Path) -> tuple[Member, ...]:
    longest = directory / f"{count}.sock"
    if len(str(longest).encode()) > UNIX_PATH_BYTES_MAX:
        raise ConfigurationError(
            f"the directory {directory} has too long a name for a unix socket;"
            f" allowed: {UNIX_PATH_BYTES_MAX} octets with the file's name (variable TMPDIR)"
        )
    return tuple(
        Member(worker_id=f"{worker_id}-{number}", socket_path=directory / f"{number}.sock")
        for number in range(1, count + 1)
    )


@attrs.define(eq=False, kw_only=True)
class _Fleet:
    members: tuple[Member, ...]
    command: Sequence[str]
    environ: Mapping[str, str]
    drain_seconds: float
    clock: Clock
    _stopping: trio.Event = attrs.field(factory=trio.Event, init=False)
    _until_kill: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _incurable: int | None = attrs.field(default=None, init=False)
    _aborted: bool = attrs.field(default=False, init=False)

    async def run(self, address: HttpAddress, task_status: trio.TaskStatus[HttpAddress]) -> None:
        """Keep every member running until it is stopped; return when the last has ended."""
        try:
            async with trio.open_nursery() as service:
                service.start_soon(self._kill_late)
                async with trio.open_nursery() as nursery:
                    for member in self.members:
                        self._start(member)
                        nursery.start_soon(self._keep, member)
                    task_status.started(address)
                service.cancel_scope.cancel()
        finally:
            self._kill_all()  # only an error of ours leaves any running

    async def obey(self, commands: Commands) -> None:
        """Do what signals ask."""
        async for command in commands:
            _log.info("signal_received", command=str(command))
            if command is Command.RELOAD:
                self._send(signal.SIGHUP)
            elif command is Command.DRAIN:
                self._stop()
            else:
                self._abort()

    def exit_status(self) -> int:
        """Return what the whole run amounts to."""
        if self._incurable is not None:
            return self._incurable
        return 0 if all(member.last_status == 0 for member in self.members) else 1

    def _stop(self) -> None:
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._kill_after(self.drain_seconds + ABORT_SECONDS)
        for member in self.members:
            member.draining = True
        self._send(signal.SIGTERM)

    def _abort(self) -> None:
        """Pass on the second signal; a worker that hears its second SIGTERM aborts."""
        self._stop()
        self._aborted = True
        self._kill_after(ABORT_SECONDS)
        self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        for member in self.members:
            if member.child is not None:
                member.child.send_signal(number)

    def _kill_after(self, seconds: float) -> None:
        self._until_kill.deadline = min(self._until_kill.deadline, trio.current_time() + seconds)

    async def _kill_late(self) -> None:
        await self._stopping.wait()
        with self._until_kill:
            await trio.sleep_forever()
        late = [member.worker_id for member in self.members if member.child is not None]
        _log.error("worker_processes_killed", killed_worker_ids=late)
        self._kill_all()

    def _kill_all(self) -> None:
        for member in self.members:
            if member.child is not None:
                member.child.kill()

    async def _keep(self, member: Member) -> None:
        backoff = RestartBackoff()
        while True:
            await self._wait(member)
            if self._stopping.is_set():
                return
            if member.last_status in INCURABLE_STATUSES:
                self._give_up(member)
                return
            delay = backoff.failed(ran_seconds=member.ran_seconds, draw=self.clock.draw())
            _log.error(
                "worker_process_ended",
                ended_worker_id=member.worker_id,
                ended_by=describe_status(member.last_status),
                restart_in_seconds=round(delay, 3),
            )
            with trio.move_on_after(delay):
                await self._stopping.wait()
                return
            member.restarts += 1
            self._start(member)

    def _start(self, member: Member) -> None:
        """Start the member's process, in one step: no signal can fall between the check and the start."""
        member.socket_path.unlink(missing_ok=True)  # a killed predecessor leaves it, and binding would fail
        environ = {name: value for name, value in self.environ.items() if name not in _LEGACY_NAMES}
        environ["PGGIT_REACTOR_WORKER_ID"] = member.worker_id
        environ["PGGIT_REACTOR_WORKER_PROCESSES"] = "1"  # else each would be a supervisor too, and so on
        environ["PGGIT_REACTOR_METRICS_HOST"] = f"{UNIX_PREFIX}{member.socket_path}"
        try:
            member.child = Child(self.command, environ=environ)
        except OSError:  # no memory, too many processes: perhaps not for long
            member.last_status, member.ran_seconds = 1, 0.0
            _log.exception("worker_process_not_started", ended_worker_id=member.worker_id)

    async def _wait(self, member: Member) -> None:
        child = member.child
        if child is None:
            return
        status = await child.wait()
        # One that we asked to end before it could install a handler had not begun: it holds nothing.
        unheard = status == -signal.SIGTERM and self._stopping.is_set() and not self._aborted
        member.ended(0 if unheard else status, at=trio.current_time())

    def _give_up(self, member: Member) -> None:
        _log.critical(
            "worker_process_cannot_run",
            ended_worker_id=member.worker_id,
            ended_by=describe_status(member.last_status),
            hint="its own last line says why; another start would end the same way",
        )
        if self._incurable is None:
            self._incurable = member.last_status
        self._stop()
