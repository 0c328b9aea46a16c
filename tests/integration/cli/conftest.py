"""Runs commands: in this process, where that shows the same, or as processes of their own."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import psycopg
import pytest

from pggit_reactor.cli.main import run
from pggit_reactor.testing.database import ReactorDatabase

MASTER_KEY = "test:base64:" + base64.b64encode(bytes(range(32))).decode()
OTHER_KEY = "test:base64:" + base64.b64encode(bytes(range(1, 33))).decode()
HOOK = "https://203.0.113.9/hooks/tok3n"
"""Refused by policy; `PERMISSIVE` frees it. A literal address asks no name server."""
PERMISSIVE = {"PGGIT_REACTOR_EGRESS_UNSAFE_ALLOW": "203.0.113.0/24:*,127.0.0.0/8:*"}


@attrs.frozen(kw_only=True)
class Result:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def last_word(self) -> str:
        return self.out.split()[-1]


class Commands:
    """Calls ``pggit-reactor`` with an environment of its own."""

    def __init__(self, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd) -> None:
        self.environ = environ
        self._monkeypatch = monkeypatch
        self._capfd = capfd
        self.printed = ""

    def __call__(self, *arguments: str, stdin: bytes = b"", **settings: str | None) -> Result:
        environ = self.environ | {
            f"PGGIT_REACTOR_{name}": value for name, value in settings.items() if value is not None
        }
        for name, value in settings.items():
            if value is None:
                environ.pop(f"PGGIT_REACTOR_{name}", None)
        with self._monkeypatch.context() as patch:
            for name in list(os.environ):
                if name.startswith("PGGIT_REACTOR_") or name == "DATABASE_URL":
                    patch.delenv(name)
            for name, value in environ.items():
                patch.setenv(name, value)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            self._capfd.readouterr()
            status = run(arguments)
            printed = self._capfd.readouterr()
        self.printed += printed.out + printed.err
        return Result(status=status, out=printed.out, err=printed.err)

    def ok(self, *arguments: str, stdin: bytes = b"", **settings: str | None) -> Result:
        result = self(*arguments, stdin=stdin, **settings)
        assert result.status == 0, result
        return result


@pytest.fixture
def commands(
    reactor_database: ReactorDatabase, monkeypatch: pytest.MonkeyPatch, capfd, tmp_path: Path
) -> Commands:
    monkeypatch.chdir(tmp_path)
    environ = {
        "PGGIT_REACTOR_DATABASE_URL": reactor_database.dsn.reveal(),
        "PGGIT_REACTOR_MASTER_KEY": MASTER_KEY,
        **PERMISSIVE,
    }
    return Commands(environ, monkeypatch, capfd)


@pytest.fixture
def database(reactor_database: ReactorDatabase) -> Iterator[psycopg.Connection]:
    """The test's own eyes in the database."""
    with psycopg.connect(reactor_database.dsn.reveal(), autocommit=True) as connection:
        yield connection


@pytest.fixture
def hook() -> str:
    return HOOK


@pytest.fixture
def other_key() -> str:
    return OTHER_KEY


@pytest.fixture
def enqueued(database: psycopg.Connection):
    """Queue one delivery for a webhook id; returns the delivery id."""

    def enqueue(webhook_id: int, body: str = '{"alert": 1}') -> int:
        row = database.execute("SELECT pggit.enqueue(%s, %s)", (webhook_id, body)).fetchone()
        assert row is not None
        return row[0]

    return enqueue
