"""Databases as pgGit left them: scripts of `fixtures/`, in the order in which operators loaded them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from pggit_reactor.db.sql_split import split_statements
from pggit_reactor.testing.database import DatabaseTemplate, ReactorDatabase
from pggit_reactor.testing.receiver import open_receiver
from pggit_reactor.testing.rig import Rig

FIXTURES = Path(__file__).with_name("fixtures")

Load = Callable[..., Awaitable[None]]


@pytest.fixture
def empty_database(postgres_server) -> Iterator[ReactorDatabase]:
    """A database that no migration has touched."""
    with DatabaseTemplate(postgres_server, migrations=()) as template, template.clone() as database:
        yield database


@pytest.fixture
def load(empty_database: ReactorDatabase) -> Load:
    """Runs scripts of `fixtures/` by name in `empty_database`, whose own zone is *zone*."""

    async def run(*names: str, zone: str = "America/St_Johns") -> None:
        await empty_database.execute(f"ALTER DATABASE {empty_database.name} SET timezone = '{zone}'")
        connection = await empty_database.connect()
        for name in names:
            for statement in split_statements((FIXTURES / f"{name}.sql").read_text(encoding="utf-8")):
                await connection.execute(statement.text, prepare=False)

    return run


@pytest.fixture
async def rig(reactor_database: ReactorDatabase) -> AsyncIterator[Rig]:
    async with open_receiver() as receiver:
        yield Rig(database=reactor_database, receiver=receiver)
