"""What the demo plays on: a temporary folder, a PostgreSQL, a receiver, a master key, and a worker's environment.

In the temporary folder, ``postgres`` belongs to the user that the server runs as and ``private`` to us, both
mode 0700. Where that user is another (we are root), the folder around them may be passed through, not read.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import attrs

from pggit_reactor.cli.demonstration.certificate import make_certificate
from pggit_reactor.cli.demonstration.receiver import HOST, Receiver, open_receiver
from pggit_reactor.config.load import load_settings
from pggit_reactor.config.secret_file import write_secret_file
from pggit_reactor.config.settings import Settings
from pggit_reactor.core.secret import Secret
from pggit_reactor.db.connect import open_connection
from pggit_reactor.db.embedded import EmbeddedPostgres, open_embedded_postgres
from pggit_reactor.db.migrate import MigrateReport, migrate
from pggit_reactor.runtime.clock import Clock
from pggit_reactor.security.keyring import KEY_OCTETS, new_key_line

PREFIX: Final = "pggit-reactor-demo-"
KEY_ID: Final = "demo"
TIMEOUT_SECONDS: Final = 1
LEASE_SECONDS: Final = 4
POLL_SECONDS: Final = 1
BACKOFF_SECONDS: Final = 0.5

_KEPT_VARIABLES: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH")


@attrs.frozen(kw_only=True)
class Stage:
    """Everything but the workers, running."""

    folder: Path
    postgres: EmbeddedPostgres
    receiver: Receiver
    migrated: MigrateReport
    settings: Settings
    """Those that the workers have too."""
    environ: Mapping[str, str] = attrs.field(repr=False)
    """For `open_worker`; secrets are in files that it names."""

    def worker_environ(self, name: str) -> Mapping[str, str]:
        """Return the environment of the worker *name*."""
        return {**self.environ, "PGGIT_REACTOR_WORKER_ID": name}


@asynccontextmanager
async def open_stage(*, bin_dir: Path | None, clock: Clock) -> AsyncIterator[Stage]:
    """Build all of it in a temporary folder; at the end of the block nothing of it is left."""
    with temporary_folder() as folder:
        private = folder / "private"
        private.mkdir(mode=0o700)
        authority_file, context = make_certificate(private, address=HOST, wall_now=clock.wall())
        async with (
            open_embedded_postgres(folder / "postgres", bin_dir=bin_dir) as postgres,
            open_receiver(context, clock=clock) as receiver,
        ):
            async with open_connection(postgres.dsn, application_name="pggit-reactor demo") as connection:
                migrated = await migrate(connection)
            write_secret_file(private / "database.url", postgres.dsn)
            key = Secret(new_key_line(KEY_ID, secrets.token_bytes(KEY_OCTETS)))
            write_secret_file(private / "master.key", key)
            environ = _worker_environ(private, authority_file, receiver.port)
            yield Stage(
                folder=folder,
                postgres=postgres,
                receiver=receiver,
                migrated=migrated,
                settings=load_settings(environ=environ).settings,
                environ=environ,
            )


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder for the length of the block."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        if os.geteuid() == 0:
            folder.chmod(stat.S_IRWXU | stat.S_IXGRP | stat.S_IXOTH)
        yield folder
    finally:
        shutil.rmtree(folder)


def postgres_folder(environ: Mapping[str, str]) -> Path | None:
    """Return the folder of the server's programs, where *environ* names one."""
    name = "PGGIT_REACTOR_POSTGRES_BIN"
    found = {name: environ[name]} if name in environ else {}
    return load_settings(environ=found).settings.postgres_bin


def _worker_environ(private: Path, authority_file: Path, receiver_port: int) -> Mapping[str, str]:
    # Built anew: what this machine has set for a real reactor must not reach the demo's.
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return kept | {
        "PGGIT_REACTOR_DATABASE_URL_FILE": str(private / "database.url"),
        "PGGIT_REACTOR_MASTER_KEY_FILE": str(private / "master.key"),
        "PGGIT_REACTOR_EGRESS_UNSAFE_ALLOW": f"{HOST}/32:{receiver_port}",
        "PGGIT_REACTOR_DELIVERY_TIMEOUT_SECONDS": str(TIMEOUT_SECONDS),
        "PGGIT_REACTOR_DELIVERY_BACKOFF_BASE_SECONDS": str(BACKOFF_SECONDS),
        "PGGIT_REACTOR_WORKER_LEASE_SECONDS": str(LEASE_SECONDS),
        "PGGIT_REACTOR_WORKER_POLL_SECONDS": str(POLL_SECONDS),
        "PGGIT_REACTOR_METRICS_PORT": "0",
        "PGGIT_REACTOR_LOG_LEVEL": "debug",
        "PGGIT_REACTOR_LOG_FORMAT": "json",
        "SSL_CERT_FILE": str(authority_file),
    }
