"""The processes of a PostgreSQL server, seen from outside: who they are, and how to be rid of them."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from pggit_reactor.errors import EmbeddedPostgresError

KILL_SECONDS_MAX: Final = 5.0


def kill_family(pid: int) -> None:
    """Kill *pid* and its children at once with SIGKILL, and wait until they have ended."""
    with process_handles([pid, *children_of(pid)]) as handles:
        for handle in handles:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        wait_for_end(handles)


def kill_group(group: int) -> None:
    """Kill all members of the process group *group* with SIGKILL, and wait until they have ended."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    # After the signal, which reaches all members at once: so none can have been forked meanwhile.
    dying = [pid for pid, (_, of_group) in _parents_and_groups().items() if of_group == group]
    with process_handles(dying) as handles:
        wait_for_end(handles)


def postmaster_lines(cluster: Path) -> list[str]:
    """Return the lines of the server's own pid file; none where it is not running."""
    try:
        return (cluster / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []


def postmaster_of(cluster: Path) -> int | None:
    """Return the pid of the server that runs on *cluster*; a stale file, or a pid used anew, is none."""
    lines = postmaster_lines(cluster)
    if not lines or not lines[0].isdigit():
        return None
    pid = int(lines[0])
    try:
        return pid if Path(f"/proc/{pid}/cwd").readlink() == cluster else None
    except OSError:
        return None


def children_of(parent: int) -> list[int]:
    """Return the pids of the children of *parent*."""
    return [pid for pid, (of_parent, _) in _parents_and_groups().items() if of_parent == parent]


def _parents_and_groups() -> dict[int, tuple[int, int]]:
    """Return parent and process group of each process."""
    found = {}
    for stat_file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name in parentheses may hold anything, so count from its end: state, parent, group.
            fields = stat_file.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
            found[int(stat_file.parent.name)] = (int(fields[1]), int(fields[2]))
    return found


@contextmanager
def process_handles(pids: list[int]) -> Iterator[list[int]]:
    """Hold the processes by descriptors, so that a pid used anew is never hit."""
    handles = []
    try:
        for pid in pids:
            with suppress(ProcessLookupError):
                handles.append(os.pidfd_open(pid))
        yield handles
    finally:
        for handle in handles:
            os.close(handle)


def wait_for_end(handles: list[int]) -> None:
    """Block until the processes have ended, for at most `KILL_SECONDS_MAX`."""
    deadline = time.monotonic() + KILL_SECONDS_MAX
    for handle in handles:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise EmbeddedPostgresError("a killed process of PostgreSQL does not end")
