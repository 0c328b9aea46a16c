"""The pytest plugin of pggit-reactor; pytest loads it by its entry point.

Loading it must cost nothing, for it happens in every run of every project that has the package installed, and
before coverage starts to look: what a fixture needs is imported by the fixture.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from pggit_reactor.db.embedded import EmbeddedPostgres
    from pggit_reactor.testing.database import DatabaseTemplate, ReactorDatabase

POSTGRES_BIN: Final = "PGGIT_REACTOR_POSTGRES_BIN"


@pytest.fixture(scope="session")
def postgres_bin() -> Path | None:
    """Where the server's binaries are: ``PGGIT_REACTOR_POSTGRES_BIN``; None for the first that are found."""
    folder = os.environ.get(POSTGRES_BIN)
    return Path(folder) if folder else None


@pytest.fixture(scope="session")
def postgres_settings() -> Mapping[str, str]:
    """Settings of the session's server; override it to change them."""
    from pggit_reactor.testing.database import QUICK_SETTINGS

    return QUICK_SETTINGS


@pytest.fixture(scope="session")
def postgres_server(
    postgres_bin: Path | None, postgres_settings: Mapping[str, str]
) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL server for the session. Do not stop it: a test that does opens one of its own."""
    from pggit_reactor.db.embedded import embedded_postgres

    with embedded_postgres(settings=postgres_settings, bin_dir=postgres_bin) as server:
        yield server


@pytest.fixture(scope="session")
def reactor_template(postgres_server: EmbeddedPostgres) -> Iterator[DatabaseTemplate]:
    """Makes databases; `reactor_database` is one of them."""
    from pggit_reactor.testing.database import DatabaseTemplate

    with DatabaseTemplate(postgres_server) as template:
        yield template


@pytest.fixture
def reactor_database(reactor_template: DatabaseTemplate) -> Iterator[ReactorDatabase]:
    """A migrated database of the test's own, dropped afterwards."""
    with reactor_template.clone() as database:
        yield database
