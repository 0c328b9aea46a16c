"""What the bench asks of whatever it measures.

A contender has a database of its own on the bench's server, a process that delivers, and SQL for what the
producer does. To add another queue, write one of these: its process may be of any language, since the
producer and the receiver keep the time.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Protocol

import attrs

from bench.board import Board
from bench.producer import Producer
from bench.receiver import Receiver
from pggit_reactor.db.embedded import EmbeddedPostgres

ENDPOINTS: int = 10
"""Receivers that a burst is spread over; they differ by path."""


@attrs.frozen(kw_only=True)
class Stage:
    """What all contenders share."""

    folder: Path
    server: EmbeddedPostgres
    board: Board
    receiver: Receiver
    producer: Producer

    def environ(self, **variables: str) -> dict[str, str]:
        """Return the environment of a process that trusts the receiver and nobody else."""
        return {**os.environ, "SSL_CERT_FILE": str(self.receiver.ca_file), **variables}


class Contender(Protocol):
    """One way from an INSERT to a POST."""

    name: str
    insert_one: str
    """Adds row $1 for endpoint $2 (0 to `ENDPOINTS` - 1); its body is JSON with a member ``"n": $1`` first."""
    insert_many: str
    """Adds rows $1 to $2, spread over the endpoints, in one statement."""
    waiting: str
    """Counts the rows that are not done with, bookkeeping included."""

    def prepare(self, stage: Stage) -> None:
        """Make the database. Called once."""

    def dsn(self) -> str:
        """Return where the producer connects."""

    def start(self, stage: Stage) -> subprocess.Popen[bytes]:
        """Start the process that delivers; it is ready when this returns, and ends at SIGTERM."""


class Troubled(Contender, Protocol):
    """A contender that has receivers in trouble among its endpoints, and lives on."""

    insert_half_hanging: str
    """Adds rows $1 to $2, the odd ones for a receiver that hangs, the others spread over the endpoints."""
    insert_dead: str
    """Adds ``%s`` rows that nobody times, for a receiver that is not there."""
    insert_outage: str
    """Adds rows $1 to $2, for a receiver that may be away for a while."""
    clear: str
    """Removes all rows; no process runs."""


class Gated(Contender, Protocol):
    """A contender whose INSERTs cost what its own trigger costs, with workers asleep and busy."""

    insert_resting: str
    """As `insert_one`, for an endpoint that is not sent to."""
    resting: str
    """Counts those rows."""
    insert_backlog: str
    """Adds ``%s`` rows that nobody times, for few endpoints, so that workers are busy and have room."""
    trigger_off: str
    trigger_on: str
    gate_open: str
    """Says whether producers may be silent now."""
