"""Master keys from a command: a vault's client, a key service's, a script of one's own.

It runs without a shell, for a bounded time, in a process group that is killed as a whole. What it prints is the
secret, so nothing of it is ever shown: not its output, and not what it says on standard error, which may quote it.
"""

from __future__ import annotations

import os
import selectors
import shlex
import signal
import subprocess
import time
from contextlib import suppress
from typing import Final

from pggit_reactor.config.secret_file import SECRET_FILE_BYTES_MAX
from pggit_reactor.config.setting import VARIABLE_PREFIX
from pggit_reactor.config.settings import KeySettings
from pggit_reactor.core.secret import Secret
from pggit_reactor.errors import KeyringError

COMMAND_SECONDS_MAX: Final = 10.0
_READ_OCTETS: Final = 4096
_SETTING: Final = "keys.master_key_command"
_OURS: Final = ("DATABASE_URL",)
"""Variables that are no business of a command's, beside those with our prefix: they may hold secrets."""


def read_master_key(settings: KeySettings) -> Secret[str] | None:
    """Return the text of the master keys, from the settings or from the command that they name; None for neither.

    Blocks while the command runs, at most `COMMAND_SECONDS_MAX`: call it in a thread where others wait. `KeyringError`
    says how the command failed, and nothing of what it printed.
    """
    if not settings.master_key_command:
        return settings.master_key
    return run_key_command(settings.master_key_command)


def run_key_command(command: str, *, seconds: float = COMMAND_SECONDS_MAX) -> Secret[str]:
    """Run *command* and return what it prints, without its last line ends. As `read_master_key`."""
    words = shlex.split(command)
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(VARIABLE_PREFIX) and name not in _OURS
    }
    try:
        process = subprocess.Popen(  # noqa: S603  # whoever writes the settings may run programs as we do
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environ,
            start_new_session=True,
        )
    except OSError as error:
        raise KeyringError(f"{_SETTING}: cannot run {words[0]}: {error.strerror}") from None
    with process:
        try:
            octets = _read_all(process, words[0], time.monotonic() + seconds, seconds)
        finally:
            _kill(process)
    return _text_of(octets, words[0])


def _read_all(process: subprocess.Popen[bytes], name: str, deadline: float, seconds: float) -> bytes:
    """Return all that *process* prints; it has ended well. Its end alone does not do: a child may hold the pipe."""
    assert process.stdout is not None
    octets = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise _late(name, seconds)
            piece = os.read(process.stdout.fileno(), _READ_OCTETS)
            if not piece:
                break
            octets += piece
            if len(octets) > SECRET_FILE_BYTES_MAX:
                raise KeyringError(
                    f"{_SETTING}: {name} prints more than {SECRET_FILE_BYTES_MAX} bytes: these are no keys of ours"
                )
    try:
        status = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise _late(name, seconds) from None
    if status != 0:
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        raise KeyringError(
            f"{_SETTING}: {name} {how}; run it by hand as this user (its output is a secret: it is not shown here)"
        )
    return octets


def _late(name: str, seconds: float) -> KeyringError:
    return KeyringError(f"{_SETTING}: {name} did not end within {seconds:g} s")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the whole group, unless it ended well: a child of it may hold the pipe, or never end."""
    # Once it is reaped its number is no longer its own.
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _text_of(octets: bytes, name: str) -> Secret[str]:
    try:
        text = octets.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise KeyringError(f"{_SETTING}: what {name} prints is not text; right is UTF-8") from None
    if not text.strip():
        raise KeyringError(f"{_SETTING}: {name} prints nothing; right are keys, one a line")
    return Secret(text)
