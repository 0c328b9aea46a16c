"""What the figures were taken on, and who used its processors meanwhile."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import attrs

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PROC: Final = Path("/proc")
_SYNCS: Final = 50
_NANOSECONDS: Final = 1e9


def cpu_seconds(root_pid: int) -> float:
    """Return the CPU time of a process, its living descendants, and those that they have waited for."""
    return sum(_own_cpu_seconds(pid) + _reaped_cpu_seconds(pid) for pid in family(root_pid))


def family(root_pid: int) -> Iterator[int]:
    """Return *root_pid* and its living descendants."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for folder in _PROC.iterdir():
        if folder.name.isdigit() and (fields := _stat(int(folder.name))):
            children[int(fields[1])].append(int(folder.name))
    pending = [root_pid]
    while pending:
        pid = pending.pop()
        yield pid
        pending += children[pid]


def peak_memory_mib(root_pid: int) -> float:
    """Return the sum of the largest resident sizes that a process and its descendants ever had."""
    total_kib = 0
    for pid in family(root_pid):
        with suppress(OSError):
            found = re.search(r"VmHWM:\s+(\d+) kB", (_PROC / str(pid) / "status").read_text())
            total_kib += int(found[1]) if found else 0
    return total_kib / 1024


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name: state, parent and so on; empty where it is gone."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def _own_cpu_seconds(pid: int) -> float:
    """Return a process's own CPU time from its threads' schedstat: nanoseconds, where stat counts in 10 ms."""
    total = 0.0
    with suppress(OSError):
        for thread in (_PROC / str(pid) / "task").iterdir():
            with suppress(OSError):
                total += int((thread / "schedstat").read_text().split()[0]) / _NANOSECONDS
    return total


def _reaped_cpu_seconds(pid: int) -> float:
    fields = _stat(pid)
    return (int(fields[13]) + int(fields[14])) / _TICKS if fields else 0.0


@attrs.define(eq=False)
class Meter:
    """CPU seconds of named families of processes between two moments, and what others than them and us used."""

    roots: dict[str, int]
    _before: dict[str, float] = attrs.field(factory=dict, init=False)
    _machine_before: float = attrs.field(default=0.0, init=False)
    _started_at: float = attrs.field(default=0.0, init=False)

    def start(self) -> None:
        """Begin."""
        self._before = {name: cpu_seconds(pid) for name, pid in self.roots.items()}
        self._machine_before = machine_cpu_seconds() - time.process_time()
        self._started_at = time.monotonic()

    def stop(self) -> tuple[dict[str, float], float]:
        """Return the CPU seconds of each family, and the share of the machine that went to none of them."""
        elapsed = time.monotonic() - self._started_at
        machine = machine_cpu_seconds() - time.process_time() - self._machine_before
        used = {name: cpu_seconds(pid) - self._before[name] for name, pid in self.roots.items()}
        capacity = elapsed * (os.cpu_count() or 1)
        return used, max(0.0, machine - sum(used.values())) / capacity


def machine_cpu_seconds() -> float:
    """Return the busy time of all processors since the machine started."""
    user, nice, system, _idle, _wait, irq, softirq, steal = map(
        int, (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / _TICKS


def facts(data: Path) -> dict[str, Any]:
    """Return what a reader needs to judge the figures; *data* is the folder of the database."""
    cpu = re.search(r"model name\s*: (.*)", (_PROC / "cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s+(\d+) kB", (_PROC / "meminfo").read_text())
    return {
        "processor": cpu[1] if cpu else platform.machine(),
        "processor_count": os.cpu_count(),
        "memory_gib": round(int(memory[1]) / 1024**2, 1) if memory else None,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "file_system": _file_system(data),
        "fdatasync_ms": round(_fdatasync_ms(data), 3),
        "commit": _commit(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _file_system(folder: Path) -> str:
    best = ("", "unknown")
    for line in (_PROC / "self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if folder.is_relative_to(place) and len(place) >= len(best[0]):
            best = (place, kind)
    return best[1]


def _fdatasync_ms(folder: Path) -> float:
    """Return the median time of writing a page and making it durable: most of what a lone COMMIT costs."""
    path = folder / "sync-probe"
    times: list[float] = []
    with path.open("wb", buffering=0) as file:
        file.write(bytes(8192))
        os.fsync(file.fileno())
        for _ in range(_SYNCS):
            began = time.perf_counter()
            file.seek(0)
            file.write(bytes(8192))
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    path.unlink()
    return statistics.median(times) * 1000


def _commit() -> str | None:
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    with suppress(OSError):
        done = subprocess.run(git, check=False, capture_output=True, text=True)
        return done.stdout.strip() or None
    return None


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value below which *share* of all lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
