"""Files that hold a secret: read only where nobody else could have read or changed them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from pggit_reactor.core.secret import Secret
from pggit_reactor.errors import ConfigurationError

SECRET_FILE_BYTES_MAX: Final = 65_536
_OWNER_ONLY: Final = 0o600


def read_secret_file(path: Path) -> Secret[str]:
    """Return the text of a file without its last line ends.

    ConfigurationError where it cannot be read, is no ordinary file, is empty, too large or not UTF-8, or
    where its mode lets others in (`mode_complaint`). The file that was checked is the one that is read: a
    link may point elsewhere a moment later.
    """
    octets = _read(path)
    try:
        # A byte order mark, which some editors write, is not a part of the secret.
        text = octets.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not text; right is UTF-8") from None
    if not text.strip():
        raise ConfigurationError(f"{path} is empty; right is the secret, and nothing else")
    return Secret(text)


def write_secret_file(path: Path, text: Secret[str]) -> None:
    """Write a new file that only its owner may read. ConfigurationError where *path* exists or cannot be
    made."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _OWNER_ONLY)
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123  # pathlib opens no descriptors
            file.write(text.reveal() + "\n")
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise ConfigurationError(
            f"{path} exists already; right is a new name, for a key is never overwritten"
        ) from None
    except OSError as exc:
        raise ConfigurationError(f"{path} cannot be written: {exc.strerror}") from exc


def mode_complaint(mode: int, owner: int) -> str | None:
    """Say who could read or change a secret file that should not, and how to mend it; None if nobody.

    A group may read a file that root owns: so a Kubernetes secret is mounted for an ordinary user (fsGroup).
    """
    others, group = mode & stat.S_IRWXO, mode & stat.S_IRWXG
    group_may = stat.S_IRGRP if owner == 0 else 0
    if others & (stat.S_IROTH | stat.S_IWOTH):
        who = "everybody"
    elif group & (stat.S_IRGRP | stat.S_IWGRP) & ~group_may:
        who = "its group"
    else:
        return None
    verb = "change" if mode & (stat.S_IWOTH | stat.S_IWGRP) else "read"
    return (
        f"{who} may {verb} it (mode {stat.S_IMODE(mode):04o}); right is mode 0600 (chmod 600), or 0440 where "
        "root owns it (Kubernetes: defaultMode 0440 and an fsGroup; Compose: mode 0400 on the secret)"
    )


def _read(path: Path) -> bytes:
    try:
        # Without O_NONBLOCK the opening of a pipe that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:  # noqa: PTH123  # pathlib opens no descriptors
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigurationError(f"{path} is not an ordinary file")
            complaint = mode_complaint(status.st_mode, status.st_uid)
            if complaint is not None:
                raise ConfigurationError(f"{path}: {complaint}")
            octets = file.read(SECRET_FILE_BYTES_MAX + 1)
    except OSError as exc:
        raise ConfigurationError(f"{path} cannot be read: {exc.strerror}") from exc
    except ValueError:
        # A NUL, or a character that no file name can hold.
        raise ConfigurationError(f"{str(path)!r} is not a path") from None
    if len(octets) > SECRET_FILE_BYTES_MAX:
        raise ConfigurationError(
            f"{path} is larger than {SECRET_FILE_BYTES_MAX} bytes: it is no secret of ours"
        )
    return octets
