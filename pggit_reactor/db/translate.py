"""What psycopg says, in our words.

The primary text of PostgreSQL's message passes and nothing else: DETAIL, CONTEXT and QUERY hold row values,
and a row may hold a payload. Data exceptions (class 22) quote the offending value in the primary text itself,
so quoted parts are masked there. For the same reason nothing is chained: psycopg's error carries the full
text, and a printed ``__cause__`` would show it.
"""

from __future__ import annotations

import re
from types import TracebackType
from typing import Final

import psycopg

from pggit_reactor.errors import (
    DatabaseError,
    DatabaseUnavailableError,
    ReadOnlyDatabaseError,
    RowLockedError,
)

MESSAGE_CHARS_MAX: Final = 500

_UNAVAILABLE: Final = frozenset(
    {
        "57P01",  # admin_shutdown
        "57P02",  # crash_shutdown
        "57P03",  # cannot_connect_now
        "57014",  # query_canceled: by statement_timeout, or by an administrator
    }
)
_LOCKED: Final = frozenset(
    {
        "55P03",  # lock_not_available: lock_timeout or NOWAIT
        "40P01",  # deadlock_detected
    }
)
_READ_ONLY: Final = "25006"  # read_only_sql_transaction
_CONNECTION_CLASS: Final = "08"
_DATA_CLASS: Final = "22"
_QUOTED: Final = re.compile(r'".*"', re.DOTALL)


def translated(error: psycopg.Error) -> DatabaseError:
    """Return the error of ours that says what *error* says, without any row value."""
    sqlstate = error.sqlstate
    message = _message(error, sqlstate)
    if sqlstate is None:
        # No answer of the server: libpq lost the connection, or psycopg refused the call itself.
        lost = isinstance(error, psycopg.OperationalError)
        return DatabaseUnavailableError(message) if lost else DatabaseError(message)
    return _class_of(sqlstate)(message, sqlstate=sqlstate)


def _class_of(sqlstate: str) -> type[DatabaseError]:
    if sqlstate in _UNAVAILABLE or sqlstate.startswith(_CONNECTION_CLASS):
        return DatabaseUnavailableError
    if sqlstate in _LOCKED:
        return RowLockedError
    return ReadOnlyDatabaseError if sqlstate == _READ_ONLY else DatabaseError


def _message(error: psycopg.Error, sqlstate: str | None) -> str:
    text = error.diag.message_primary or str(error) or type(error).__name__
    if sqlstate is not None and sqlstate.startswith(_DATA_CLASS):
        text = _QUOTED.sub('"…"', text)
    return one_line(text)


def one_line(text: str) -> str:
    """Return *text* as one bounded line, for a message inside another."""
    return " ".join(text.split())[:MESSAGE_CHARS_MAX]


class translate_errors:  # noqa: N801  # a context manager is read as a verb
    """Turn psycopg's errors into ours: ``with translate_errors(): ...``.

    A class and not a generator: this stands on hot paths.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, psycopg.Error):
            raise translated(error) from None
