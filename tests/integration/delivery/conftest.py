from __future__ import annotations

import pytest

from pggit_reactor.testing.receiver import open_receiver
from pggit_reactor.testing.senders import open_sender


@pytest.fixture
async def receiver():
    async with open_receiver() as receiver:
        yield receiver


@pytest.fixture
async def sender(receiver):
    async with open_sender(receiver) as sender:
        yield sender
