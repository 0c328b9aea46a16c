"""Names each piece of psycopg that we use without its documentation's leave. A new version is bumped through here."""

from __future__ import annotations

import inspect

import psycopg
import pytest
from psycopg import AsyncConnection, AsyncCopy, AsyncCursor, AsyncPipeline, AsyncTransaction, capabilities
from psycopg import _conninfo_utils as conninfo_utils
from psycopg.waiting import Ready, Wait


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        (AsyncConnection._connect_gen, ["conninfo"]),
        (AsyncConnection._cancel_gen, ["self"]),
        (AsyncConnection._commit_gen, ["self"]),
        (AsyncConnection._rollback_gen, ["self"]),
        (AsyncConnection._check_connection_ok, ["self"]),
        (AsyncConnection._should_cancel, ["self"]),
        (AsyncConnection._pipeline_nolock, ["self"]),
        (AsyncConnection.wait, ["self", "gen", "interval", "timeout"]),
        (AsyncConnection.cancel_safe, ["self", "timeout"]),
        (AsyncCursor._execute_gen, ["self", "query", "params", "prepare", "binary"]),
        (AsyncCursor._start_copy_gen, ["self", "statement", "params"]),
        (AsyncCursor._select_current_result, ["self", "i", "format"]),
        (AsyncCopy.finish, ["self", "exc"]),
        (AsyncTransaction._enter_gen, ["self"]),
        (AsyncTransaction._exit_gen, ["self", "exc_type", "exc_val", "exc_tb"]),
        (AsyncTransaction._check_enter, ["self"]),
        (AsyncPipeline._enter_gen, ["self"]),
        (AsyncPipeline._exit_gen, ["self"]),
        (AsyncPipeline.__init__, ["self", "conn", "_no_lock"]),
        (psycopg.generators.notifies, ["pgconn"]),
        (conninfo_utils.split_attempts, ["params"]),
        (conninfo_utils.get_param, ["params", "name"]),
        (conninfo_utils.is_ip_address, ["s"]),
        (capabilities.has_cancel_safe, ["check"]),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_a_piece_of_psycopg_is_as_we_use_it(piece, expected):
    assert parameters(piece) == expected


def test_what_generators_yield_and_are_sent_has_the_bits_that_we_read():
    assert {name: int(value) for name, value in Wait.__members__.items()} == {"R": 1, "W": 2, "RW": 3}
    assert {name: int(value) for name, value in Ready.__members__.items()} == {"R": 1, "W": 2, "RW": 3} | (
        {"NONE": 0} if "NONE" in Ready.__members__ else {}
    )


def test_the_loop_that_psycopg_waits_on_is_found_by_a_name_that_we_may_replace():
    assert callable(psycopg.waiting.get_running_loop)


async def test_a_connection_has_the_attributes_that_we_set_and_read(reactor_database):
    connection = await reactor_database.connect()
    plain = AsyncConnection.__new__(AsyncConnection)
    AsyncConnection.__init__(plain, connection.pgconn)
    plain.pgconn = None  # type: ignore[assignment]  # so that nobody takes it for open
    del plain.pgconn

    for name in (
        "lock",
        "cursor_factory",
        "server_cursor_factory",
        "_autocommit",
        "_closed",
        "_num_transactions",
        "_pipeline",
    ):
        assert hasattr(plain, name)
    assert connection._notified is not None
    assert hasattr(AsyncPipeline(connection), "level")
    assert hasattr(AsyncPipeline(connection), "_lock")
