"""Starts processes that say when they are ready, and ends them whatever happens."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

START_SECONDS_MAX: Final = 30.0
STOP_SECONDS_MAX: Final = 10.0
LOG_TAIL_CHARS: Final = 3000
ROOT: Final = Path(__file__).resolve().parents[1]
_LOOK_SECONDS: Final = 0.01


class BenchError(Exception):
    """What makes the figures worthless, in one sentence."""


def python(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of this checkout."""
    return [sys.executable, "-m", module, *arguments]


def start(
    command: Sequence[str], *, log: Path, ready: str, environ: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start *command*, whose output goes to the end of *log*; return it once that holds the word *ready*."""
    with log.open("ab") as output:
        begin = output.tell()
        process = subprocess.Popen(
            command, cwd=ROOT, env=dict(environ), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        _await(process, log, begin, ready)
    except BaseException:
        stop(process)
        raise
    return process


def _await(process: subprocess.Popen[bytes], log: Path, begin: int, ready: str) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while ready not in (said := log.read_bytes()[begin:].decode(errors="replace")):
        if process.poll() is not None or time.monotonic() > deadline:
            raise BenchError(f"{log.stem} did not start: {said[-LOG_TAIL_CHARS:]}")
        time.sleep(_LOOK_SECONDS)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to end, and end it where it does not."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
