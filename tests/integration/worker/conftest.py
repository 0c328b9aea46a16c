"""The rig: a database, a receiver, and workers on request."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from pggit_reactor.testing.database import ReactorDatabase
from pggit_reactor.testing.receiver import open_receiver
from pggit_reactor.testing.rig import Rig


@pytest.fixture
async def rig(reactor_database: ReactorDatabase) -> AsyncIterator[Rig]:
    async with open_receiver() as receiver:
        yield Rig(database=reactor_database, receiver=receiver)
