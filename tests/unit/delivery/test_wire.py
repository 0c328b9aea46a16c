"""Connections that end before they are one."""

from __future__ import annotations

import socket
import ssl
import struct

import pytest

from pggit_reactor.delivery.failures import handshake_failed
from pggit_reactor.delivery.wire import Wire


@pytest.mark.parametrize("reset", [False, True])
async def test_a_connection_that_ended_before_the_handshake_is_closed_and_counts_as_cut(reset):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    if reset:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()

    with pytest.raises(OSError) as caught:
        await Wire.secure(ours, ssl.create_default_context(), host="a.example", address="127.0.0.1")

    assert ours.fileno() == -1
    assert handshake_failed("a.example", caught.value).failure.kind == "reset"
