"""A psycopg connection that lives on Trio.

`TrioConnection` is psycopg's own AsyncConnection whose generators are driven by Trio, without asyncio: five
times the round trips of trio-asyncio. What differs from its parent:

- **Errors are ours** (`translate.py`): no psycopg error leaves a method of the connection or of its cursors.
- **A cancelled statement is cancelled in the server**, and its answer is read, shielded and within
  `ABANDON_SECONDS_MAX`. Afterwards the connection is idle, or inside the transaction block that is about to
  roll back, or closed: an answer can never meet the next question.
- **What begins or ends a block** (BEGIN, COMMIT, ROLLBACK, the end of a pipeline or of a COPY after an error)
  is shielded within `BOUNDARY_SECONDS_MAX`, and closes the connection where that is not enough. So a commit
  either happened or raised, whoever cancels meanwhile.
- **Closing is synchronous** underneath, and so always possible.
- `stream()`, `notifies()` and named cursors are refused: the first two are generators that hold the
connection's
  lock across a yield, and none of the three can be cleaned up within a bound. Read in pages, by key, and use
  `wait_notifies`.

Waiting for an answer has no limit of its own: a timeout belongs to the caller. A dead peer is noticed by TCP
within 15 s (`connect.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from types import TracebackType
from typing import Any, Final, Never, Self, TypeVar

import psycopg
import trio
from psycopg import (
    AsyncConnection,
    AsyncCopy,
    AsyncCursor,
    AsyncPipeline,
    AsyncTransaction,
    Notify,
    capabilities,
)
from psycopg.abc import Params, PQGen, Query
from psycopg.copy import AsyncWriter
from psycopg.pq import ConnStatus, PipelineStatus, TransactionStatus
from psycopg.pq.abc import PGconn
from psycopg.rows import AsyncRowFactory, TupleRow, tuple_row

from pggit_reactor.db.translate import translate_errors, translated
from pggit_reactor.db.waiting import drive, drive_connecting
from pggit_reactor.errors import DatabaseUnavailableError

T = TypeVar("T")

ABANDON_SECONDS_MAX: Final = 2.0
BOUNDARY_SECONDS_MAX: Final = 5.0
# Hints are worth keeping while statements run, but not without end: the oldest go first, and cost time only.
NOTIFIES_KEPT_MAX: Final = 65_536

_ACTIVE: Final = TransactionStatus.ACTIVE
_SETTLED: Final = frozenset({TransactionStatus.IDLE, TransactionStatus.INTRANS})
_BAD: Final = ConnStatus.BAD


class EagerLock:
    """A `trio.Lock` that costs no round of the event loop while nobody else holds it.

    Every use is followed by a wait on the socket, which is the checkpoint.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = trio.Lock()

    async def __aenter__(self) -> None:
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()


class TrioConnection(AsyncConnection[TupleRow]):
    """A connection to PostgreSQL on Trio; open one with `connect` or `open_connection`."""

    lock: EagerLock  # type: ignore[assignment]  # psycopg declares asyncio's; it uses `async with` alone

    def __init__(self, pgconn: PGconn, row_factory: AsyncRowFactory[TupleRow] = tuple_row) -> None:
        super().__init__(pgconn, row_factory)
        self.lock = EagerLock()
        self.cursor_factory = TrioCursor
        self.server_cursor_factory = _refuse_server_cursor  # type: ignore[assignment]  # it never returns one
        self._in_copy = False
        self._notified: deque[Notify] = deque(maxlen=NOTIFIES_KEPT_MAX)
        self.add_notify_handler(self._notified.append)

    # -- waiting and cancelling

    async def wait(self, gen: PQGen[T], interval: float = 0.0, timeout: float | None = None) -> T:
        """Run a generator of psycopg on this connection; the caller holds the lock.

        Cancellation before anything was sent sends nothing. Later it is as the module says.
        """
        if timeout is not None:
            raise NotImplementedError("a timeout belongs to the caller: use trio.fail_after")
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            return await drive(gen, self.pgconn.socket)
        except Exception:
            raise
        except BaseException:  # Cancelled (alone or in a group) or KeyboardInterrupt; raised again below
            await self._abandon(gen)
            raise

    async def _abandon(self, gen: PQGen[Any]) -> None:
        """Cancel in the server what *gen* waits for, and read its answer, so that nobody else will."""
        if self.pgconn.transaction_status != _ACTIVE:
            gen.close()  # Nothing was asked: a wait for notifications, or a connection that is gone.
            return
        with trio.move_on_after(ABANDON_SECONDS_MAX, shield=True), suppress(psycopg.Error):
            # The order matters: once the server has taken the request, a cancel that came too late for this
            # statement cannot hit the next one. psycopg's own generator reads the answer, so that its books
            # (prepared statements, results that a pipeline awaits) stay right.
            await self._request_cancel()
            await drive(gen, self.pgconn.socket)
        if not (self._in_copy or self._pipeline):  # Those blocks look at the end themselves.
            self.close_unless_settled()

    async def _request_cancel(self) -> None:
        if capabilities.has_cancel_safe():
            await drive_connecting(self._cancel_gen())
        else:  # A libpq before 17 can only block.
            await trio.to_thread.run_sync(self.pgconn.get_cancel().cancel, abandon_on_cancel=True)

    async def cancel_safe(self, *, timeout: float = ABANDON_SECONDS_MAX) -> None:
        """Ask the server to cancel the running statement, from another task; the statement then raises."""
        if not self._should_cancel():
            return
        with translate_errors():
            with trio.move_on_after(timeout) as scope:
                await self._request_cancel()
            if scope.cancelled_caught:
                raise DatabaseUnavailableError(f"the server took no request to cancel within {timeout} s")

    def close_unless_settled(self) -> None:
        """Close the connection unless it is ready for a statement or for the end of its transaction."""
        status = self.pgconn.transaction_status
        rolling_back = status == TransactionStatus.INERROR and self._num_transactions > 0
        if not (status in _SETTLED or rolling_back) or (
            self._pipeline is None and self.pgconn.pipeline_status != PipelineStatus.OFF
        ):
            self.close_now()

    @contextmanager
    def boundary(self, what: str, *, after: BaseException | None = None) -> Iterator[None]:
        """Shield the begin or the end of a block, within `BOUNDARY_SECONDS_MAX`; then close the connection.

        That it had to be closed is an error, except *after* one that already leaves the block.
        """
        with trio.move_on_after(BOUNDARY_SECONDS_MAX, shield=True) as scope:
            yield
        if scope.cancelled_caught:
            self.close_now()
            if after is None:
                raise DatabaseUnavailableError(f"{what} had no answer within {BOUNDARY_SECONDS_MAX:.0f} s")

    # -- closing

    def close_now(self) -> None:
        """Close the connection without waiting; a task that waits on it gets `DatabaseUnavailableError`."""
        self._closed = True
        if self.pgconn.status == _BAD:
            self.pgconn.finish()
            return
        with suppress(RuntimeError):  # Outside of Trio nobody can be waiting.
            trio.lowlevel.notify_closing(self.pgconn.socket)
        self.pgconn.finish()

    def _check_connection_ok(self) -> None:
        # psycopg asks this before it makes a cursor or sends a command.
        if self.pgconn.status == _BAD:
            raise DatabaseUnavailableError("the connection is closed")

    async def close(self) -> None:
        """Close the connection, even when cancelled."""
        self.close_now()
        await trio.lowlevel.checkpoint()

    async def __aexit__(self, *_: object) -> None:
        """Close the connection; an open transaction is rolled back by the server."""
        self.close_now()

    # -- statements

    async def execute(
        self,
        query: Query,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool = False,
    ) -> TrioCursor:
        """Execute one statement and return the cursor that holds its rows.

        *prepare* True prepares it on first use, False never, None after five uses.
        """
        return await TrioCursor(self).execute(query, params, prepare=prepare, binary=binary or None)

    async def commit(self) -> None:
        """Commit; as for `transaction`, it either happened or raises."""
        with translate_errors():
            async with self.lock:
                with self.boundary("COMMIT"):
                    await self.wait(self._commit_gen())

    async def rollback(self) -> None:
        """Roll back what is open; does nothing where nothing is."""
        with translate_errors():
            async with self.lock:
                with self.boundary("ROLLBACK"):
                    await self.wait(self._rollback_gen())

    def transaction(  # type: ignore[override]  # psycopg declares the type of contextlib's implementation
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AbstractAsyncContextManager[AsyncTransaction]:
        """Open a transaction, or a savepoint in one: ``async with connection.transaction(): ...``.

        Commits at the end of the block and rolls back when an exception or a cancellation leaves it; both are
        shielded and bounded. `psycopg.Rollback` raised inside rolls back quietly.
        """
        transaction = TrioTransaction(self, savepoint_name, force_rollback)
        return self._transaction_in_pipeline(transaction) if self._pipeline else transaction

    @asynccontextmanager
    async def _transaction_in_pipeline(self, transaction: TrioTransaction) -> AsyncIterator[AsyncTransaction]:
        # The inner syncs let the transaction see a settled status, as in psycopg.
        async with self.pipeline(), transaction, self.pipeline():
            yield transaction

    @asynccontextmanager
    async def pipeline(self) -> AsyncIterator[AsyncPipeline]:
        """Send the block's statements without waiting for each answer; blocks may be nested."""
        with translate_errors():
            async with self.lock:
                self._check_connection_ok()
                if self._pipeline is None:
                    self._pipeline = TrioPipeline(self)
                pipeline = self._pipeline
            async with pipeline:
                yield pipeline

    @asynccontextmanager
    async def _pipeline_nolock(self) -> AsyncIterator[AsyncPipeline]:
        """Serve `executemany`, which holds the lock already."""
        self._pipeline = pipeline = TrioPipeline(self, _no_lock=True)
        async with pipeline:
            yield pipeline

    # -- notifications

    async def wait_notifies(self) -> list[Notify]:
        """Wait until at least one notification has come, and return all that have, oldest first.

        Includes those that came while statements ran. Cancelling loses none and leaves the connection as it
        was. Nobody else can use the connection meanwhile.
        """
        with translate_errors():
            async with self.lock:
                self._check_connection_ok()
                while not self._notified:
                    await self.wait(psycopg.generators.notifies(self.pgconn))
        heard = list(self._notified)
        self._notified.clear()
        return heard

    def notifies(self, **_: object) -> Never:
        """Refused: see the module."""
        raise NotImplementedError("notifies() holds the connection across a yield: use wait_notifies()")


class TrioCursor(AsyncCursor[TupleRow]):
    """A cursor of a `TrioConnection`: as psycopg's, with our errors."""

    _conn: TrioConnection

    async def execute(
        self,
        query: Query,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool | None = None,
    ) -> Self:
        """Execute one statement; the rows are then in the cursor, and fetching them waits for nothing."""
        connection = self._conn
        try:
            async with connection.lock:
                await connection.wait(self._execute_gen(query, params, prepare=prepare, binary=binary))
        except psycopg.Error as error:
            raise translated(error) from None
        return self

    async def executemany(
        self, query: Query, params_seq: Iterable[Params], *, returning: bool = False
    ) -> None:
        """Execute one statement with each of *params_seq*, in a pipeline."""
        with translate_errors():
            await super().executemany(query, params_seq, returning=returning)

    @asynccontextmanager
    async def copy(
        self, statement: Query, params: Params | None = None, *, writer: AsyncWriter | None = None
    ) -> AsyncIterator[AsyncCopy]:
        """Run a COPY; an exception or a cancellation that leaves the block ends it in the server too."""
        connection = self._conn
        with translate_errors():
            async with connection.lock:
                await connection.wait(self._start_copy_gen(statement, params))
                connection._in_copy = True  # noqa: SLF001  # one idea in two classes
                try:
                    async with _ended(connection, AsyncCopy(self, writer=writer)) as copy:
                        yield copy
                finally:
                    connection._in_copy = False  # noqa: SLF001
                    connection.close_unless_settled()
            self._select_current_result(0)

    async def fetchone(self) -> TupleRow | None:
        """Return the next row, or None."""
        with translate_errors():
            return await super().fetchone()

    async def fetchmany(self, size: int = 0) -> list[TupleRow]:
        """Return the next *size* rows."""
        with translate_errors():
            return await super().fetchmany(size)

    async def fetchall(self) -> list[TupleRow]:
        """Return the rows that are left."""
        with translate_errors():
            return await super().fetchall()

    def stream(self, *_: object, **__: object) -> Never:
        """Refused: see the module."""
        raise NotImplementedError("stream() holds the connection across a yield: read in pages")


def _refuse_server_cursor(*_: object, **__: object) -> Never:
    raise NotImplementedError("a named cursor cannot be closed within a bound: read in pages")


@asynccontextmanager
async def _ended(connection: TrioConnection, copy: AsyncCopy) -> AsyncIterator[AsyncCopy]:
    await copy.__aenter__()
    try:
        yield copy
        await copy.finish(None)
    except BaseException as error:
        if connection.pgconn.transaction_status == _ACTIVE:
            with connection.boundary("the end of a COPY", after=error):
                await copy.finish(error)
        raise


class TrioTransaction(AsyncTransaction):
    """A transaction block whose begin and end nobody can cut in two."""

    _conn: TrioConnection

    async def __aenter__(self) -> Self:
        connection = self._conn
        await trio.lowlevel.checkpoint_if_cancelled()
        with translate_errors():
            async with connection.lock:
                self._check_enter()
                try:
                    with connection.boundary("BEGIN"):
                        await connection.wait(self._enter_gen())
                except BaseException as error:
                    await self._undo_enter(error)
                    raise
        return self

    async def _undo_enter(self, error: BaseException) -> None:
        connection = self._conn
        if connection.closed:
            self.status = self.Status.FAILED
            return
        with connection.boundary("ROLLBACK", after=error):
            await connection.wait(self._exit_gen(type(error), error, None))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        connection = self._conn
        if connection.closed:
            self.status = self.Status.FAILED
            if error is None:
                raise DatabaseUnavailableError("the connection was closed inside a transaction")
            return False
        swallow = False
        try:
            with translate_errors(), connection.boundary("COMMIT", after=error):
                async with connection.lock:
                    swallow = await connection.wait(self._exit_gen(kind, error, trace))
        finally:
            if not connection._pipeline:  # noqa: SLF001  # a pipeline settles at its own end
                connection.close_unless_settled()
        return swallow


class TrioPipeline(AsyncPipeline):
    """A pipeline that leaves the connection settled or closed."""

    _conn: TrioConnection

    async def __aenter__(self) -> Self:
        level = self.level
        try:
            async with self._lock:
                await self._conn.wait(self._enter_gen())
        except BaseException:
            if self.level > level:  # Cancelled, but psycopg's generator was driven to its end.
                self._leave()
            elif level == 0:
                self._conn._pipeline = None  # noqa: SLF001
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                async with self._lock:
                    await self._conn.wait(self._exit_gen())
        except psycopg.Error:
            raise
        except BaseException as interruption:
            await self._collect(interruption)
            raise
        else:
            if error is not None:
                await self._collect(error)
        finally:
            self._leave()

    async def _collect(self, error: BaseException) -> None:
        """Read what is still to come after *error*, which is more telling than what that brings."""
        with suppress(psycopg.Error), self._conn.boundary("the end of a pipeline", after=error):
            async with self._lock:
                await self._conn.wait(self._exit_gen())

    def _leave(self) -> None:
        # Without an await: nobody may see a pipeline that has been left.
        connection = self._conn
        self.level -= 1
        if self.level > 0:
            return
        connection._pipeline = None  # noqa: SLF001
        if not connection.closed:
            with suppress(psycopg.OperationalError):  # Answers were left unread; the next line closes.
                self.pgconn.exit_pipeline_mode()
        connection.close_unless_settled()
