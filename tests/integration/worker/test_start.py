"""What a worker does before its first claim."""

from __future__ import annotations

import pytest

from pggit_reactor.app import run_worker
from pggit_reactor.errors import ConfigurationError, SchemaTooNewError
from pggit_reactor.testing.rig import Rig


def failing_with(error: type[Exception], words: str) -> pytest.RaisesGroup[Exception]:
    """Expect *error*, in however many groups of nurseries; the command line looks for it in the same way."""
    return pytest.RaisesGroup(pytest.RaisesExc(error, match=words), flatten_subgroups=True)


async def test_an_edited_migration_ends_the_worker_since_waiting_cures_nothing(rig: Rig):
    await rig.database.execute("UPDATE pggit.schema_migration SET digest = 'edited' WHERE version = 1")

    with failing_with(ConfigurationError, "changed after being applied"):
        await run_worker(rig.settings())


async def test_a_contracted_newer_schema_ends_the_worker(rig: Rig):
    await rig.database.execute(
        "INSERT INTO pggit.schema_migration (version, name, digest, breaking, applied_by)"
        " VALUES (9000, 'contract', 'x', true, 'somebody newer')"
    )

    with failing_with(SchemaTooNewError, "upgrade pggit-reactor"):
        await run_worker(rig.settings())
