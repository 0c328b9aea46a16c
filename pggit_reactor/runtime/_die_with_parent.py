"""Run as a script: ask the kernel for SIGTERM when the parent dies, then become the given program.

A program of its own and not a ``preexec_fn``: code between fork and exec in a process that has threads may
deadlock (and warns, from Python 3.12). The wish survives exec. It fires when the *thread* that started this
ends, so a supervisor starts its children from its main thread. Runs with ``-I -S``, so only the standard
library.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """``_die_with_parent.py PARENT_PID PROGRAM [ARGUMENT ...]``."""
    parent_pid, program = int(sys.argv[1]), sys.argv[2:]
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:  # it died before the kernel heard our wish
        sys.exit(1)
    os.execvp(program[0], program)  # noqa: S606  # no shell is meant


if __name__ == "__main__":
    main()
