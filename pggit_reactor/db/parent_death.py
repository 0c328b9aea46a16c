"""A shim between us and PostgreSQL: drop to another user, ask to be told when the parent dies, then exec.

Run as a script, in an interpreter of its own, with the arguments PARENT SIGNAL UID GID PROGRAM ... The same
in a `preexec_fn` would run Python between fork and exec of a process that has threads, which may deadlock
and which newer interpreters warn about. The order matters: changing the user clears the parent-death signal.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Become PROGRAM; UID -1 keeps the user."""
    parent, death_signal, uid, gid = (int(argument) for argument in arguments[:4])
    command = arguments[4:]
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    os.umask(0o077)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the parent died before its child started")
    os.execv(command[0], command)  # noqa: S606  # no shell is wanted


if __name__ == "__main__":
    main(sys.argv[1:])
