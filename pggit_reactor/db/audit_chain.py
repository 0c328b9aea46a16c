"""The audit chain in the database: seals what was written, and reads the chain back to verify it.

Sealing never makes an INSERT wait. It reads the newest id, asks who may still hold one up to it, waits for
those a moment (`Horizon`), and seals what can be seen; what a transaction that stays open brings later goes
into a later segment by its id (docs/decisions/0020-audit-chain.md; the model: ``tests/property/audit``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import attrs

from pggit_reactor.core.audit_chain import (
    FIRST_ID,
    GENESIS_HASH,
    AuditRow,
    Break,
    ChainVerifier,
    SealCheck,
    Segment,
)
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.statements import statements
from pggit_reactor.errors import AuditChainError
from pggit_reactor.security.audit_seal import AuditSealer

SEGMENT_ROWS_MAX: Final = 10_000
PAGE_ROWS: Final = 5_000
PAGE_SEGMENTS: Final = 500
STRAYS_MAX: Final = 1_000
TAIL_ROWS_MAX: Final = 1_000_000
VERIFY_TRIES_MAX: Final = 3
PREPARED_PREFIX: Final = "-1/"
"""What pg_locks calls a prepared transaction by; before that it had another name."""

_SQL = statements("audit")


@attrs.define(eq=False, kw_only=True)
class Horizon:
    """Up to which id rows may be sealed, and who may still bring some of them; `open_horizon` begins one.

    `look` until it is `clear`, or for as long as one has patience; then `seal_segment`.
    """

    newest_id: int
    holders: frozenset[str]
    """Transactions that were writing when the id was read, and are still at it."""
    running: frozenset[str]
    """All that were writing at the last look."""

    @property
    def is_clear(self) -> bool:
        """Whether every row up to the id can be seen, or never will be."""
        return not self.holders

    async def look(self, connection: TrioConnection) -> None:
        """Ask again who is writing. Outside of a transaction: what is sealed must be read after this."""
        self.running = await _holders(connection)
        self.holders = frozenset(
            name for name in self.running if name in self.holders or name.startswith(PREPARED_PREFIX)
        )


async def open_horizon(connection: TrioConnection, key_id: str) -> Horizon | None:
    """Return up to where the log may be sealed; None where there is nothing to seal with the key of *key_id*."""
    newest_id, has_gaps = await _one(connection, "sealing_state")
    last = await read_last_segment(connection)
    is_new = newest_id > 0 if last is None else newest_id > last.to_id or last.key_id != key_id
    if not is_new and not has_gaps:
        return None
    # The id first, then who is writing: see the statement.
    running = await _holders(connection)
    return Horizon(newest_id=newest_id, holders=running, running=running)


async def seal_segment(
    connection: TrioConnection, sealer: AuditSealer, horizon: Horizon, *, rows_max: int = SEGMENT_ROWS_MAX
) -> Segment | None:
    """Seal up to *rows_max* rows; return the segment, or None where there is none or another worker seals.

    A new master key puts an empty segment of its own on the chain, while the old one can still prove what it
    follows. `AuditChainError` where the newest segment has a wrong seal.
    """
    await sealer.prepare()
    async with connection.transaction():
        (locked,) = await _one(connection, "try_sealing_lock")
        if not locked:
            return None
        last = await read_last_segment(connection)
        proven = None if last is None else await _check_last(sealer, last)
        bound = {
            "to_id": horizon.newest_id,
            "holders": sorted(horizon.holders),
            "running": sorted(horizon.running),
            "rows_max": rows_max,
        }
        number, from_id, to_id, row_count, late_ids, open_ids, rows_hash, sealed_us = await _one(
            connection, "next_segment", bound
        )
        changes_key = last is not None and last.key_id != sealer.key_id and proven is True
        if not row_count and not changes_key:
            return None
        segment = Segment(
            number=number,
            from_id=from_id,
            to_id=to_id,
            row_count=row_count,
            late_ids=tuple(late_ids),
            open_ids=open_ids,
            rows_hash=bytes(rows_hash),
            previous_hash=GENESIS_HASH if last is None else last.hash,
            previous_proven=last is None or proven is True,
            sealed_us=sealed_us,
            key_id=sealer.key_id,
            hash=b"",
            seal=b"",
        )
        segment = attrs.evolve(segment, hash=segment.computed_hash(), seal=sealer.seal(segment.header()))
        await connection.execute(_SQL["add_segment"], _bound(segment))
    return segment


async def read_last_segment(connection: TrioConnection) -> Segment | None:
    """Return the newest segment."""
    row = await (await connection.execute(_SQL["last_segment"])).fetchone()
    return None if row is None else _segment(row)


@attrs.frozen(kw_only=True)
class ChainReport:
    """What `verify_chain` found."""

    ok: bool
    breaks: tuple[Break, ...]
    break_count: int
    segments: int
    rows: int
    late_rows: int
    """Of these, rows that became visible after higher ids."""
    erased_rows: int
    """Rows whose texts were erased; their digests are as sealed."""
    seals_checked: int
    unknown_keys: dict[str, int]
    """Seals that the key ring has no key for, by key id; later seals prove them."""
    last_number: int | None
    last_hash: str | None
    """Note both outside of the database: `verify` takes them as an anchor."""
    last_sealed_us: int | None
    dropped_before_id: int | None
    """Older rows were dropped, all below this id."""
    tail_rows: int
    """Not sealed yet, and so not protected."""
    tail_oldest_at: str | None


async def verify_chain(
    connection: TrioConnection,
    *,
    check_seal: SealCheck | None = None,
    anchor: tuple[int, str] | None = None,
    kept_since_us: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> ChainReport:
    """Read the whole chain, up to the segment that is the newest now, and say what is wrong with it.

    Bounded memory; no long transaction. *check_seal* None leaves seals unlooked at. *kept_since_us*: what was
    sealed since then must still be there. *progress* hears the number of rows so far. Where retention drops rows
    meanwhile, it is read again.
    """
    for tries_left in reversed(range(VERIFY_TRIES_MAX)):
        (first_number,) = await _one(connection, "first_number")
        report = await _verify_once(
            connection, check_seal=check_seal, anchor=anchor, kept_since_us=kept_since_us, progress=progress
        )
        if report.ok or not tries_left or (await _one(connection, "first_number")) == (first_number,):
            return report
    raise AssertionError("the last try returns")


async def _verify_once(
    connection: TrioConnection,
    *,
    check_seal: SealCheck | None,
    anchor: tuple[int, str] | None,
    kept_since_us: int | None,
    progress: Callable[[int], None],
) -> ChainReport:
    verifier = ChainVerifier(check_seal)
    newest = await read_last_segment(connection)
    reader = _Reader(connection, verifier, newest)
    first: Segment | None = None
    after = 0
    while page := await reader.segments(after):
        for segment in page:
            if first is None:
                first = segment
                await reader.look_below(segment.to_id if segment.is_checkpoint else segment.from_id - 1)
            await reader.read(segment)
            progress(verifier.rows)
        after = page[-1].number
    await reader.settle_strays()
    checkpoint = first if first is not None and first.is_checkpoint else None
    if checkpoint is not None and kept_since_us is not None and checkpoint.sealed_us > kept_since_us:
        what = f"rows up to segment {checkpoint.number} were dropped that are younger than what is to be kept"
        verifier.dropped_early(what)
    anchor_hash = None
    if anchor is not None:
        row = await (await connection.execute(_SQL["segment_hash"], {"number": anchor[0]})).fetchone()
        anchor_hash = None if row is None else bytes(row[0])
    verifier.finish(anchor=anchor, anchor_hash=anchor_hash)
    tail_rows, tail_oldest = await _tail(connection, FIRST_ID - 1 if newest is None else newest.to_id)
    return ChainReport(
        ok=not verifier.break_count,
        breaks=tuple(verifier.breaks),
        break_count=verifier.break_count,
        segments=verifier.segments,
        rows=verifier.rows,
        late_rows=verifier.late,
        erased_rows=verifier.erased,
        seals_checked=verifier.seals_checked,
        unknown_keys=verifier.unknown_keys,
        last_number=None if newest is None else newest.number,
        last_hash=None if newest is None else newest.hash.hex(),
        last_sealed_us=None if newest is None else newest.sealed_us,
        dropped_before_id=None if checkpoint is None else checkpoint.to_id + 1,
        tail_rows=tail_rows,
        tail_oldest_at=tail_oldest,
    )


@attrs.define(eq=False)
class _Reader:
    """Brings segments and rows to the verifier, in order, a page at a time."""

    connection: TrioConnection
    verifier: ChainVerifier
    newest: Segment | None
    """Nothing beyond it is read; the chain may grow meanwhile."""
    _strays: list[int] = attrs.field(factory=list, init=False)
    _page: list[AuditRow] = attrs.field(factory=list, init=False)
    """Rows that were read ahead, the next one last."""
    _page_to: int = attrs.field(default=FIRST_ID - 1, init=False)
    """Up to here rows were read."""

    @property
    def last_number(self) -> int:
        """The number of the last segment to read."""
        return 0 if self.newest is None else self.newest.number

    async def segments(self, after: int) -> list[Segment]:
        """Return the next page of segments; empty at the end."""
        bound = {"after": after, "last": self.last_number, "rows_max": PAGE_SEGMENTS}
        return [_segment(row) for row in await _all(self.connection, "segments", bound)]

    async def look_below(self, to_id: int) -> None:
        """Look for rows before the chain begins."""
        bound = {"to_id": to_id, "rows_max": STRAYS_MAX}
        self._strays += [row[0] for row in await _all(self.connection, "ids_below", bound)]
        self._page_to = max(self._page_to, to_id)

    async def read(self, segment: Segment) -> None:
        """Read one segment and its rows."""
        self.verifier.begin(segment)
        if not segment.is_checkpoint:
            if segment.late_ids:
                for row in await _all(self.connection, "rows_by_id", {"ids": list(segment.late_ids)}):
                    self.verifier.row(AuditRow(*row))
            await self._read_range(segment)
        self.verifier.end()

    async def settle_strays(self) -> None:
        """Of rows that no segment held: those that one holds by now, or that are waited for, are no trouble."""
        bound = {"ids": self._strays}
        waited_for = {row[0] for row in await _all(self.connection, "waited_for", bound)}
        for audit_id in self._strays:
            if audit_id not in waited_for:
                self.verifier.stray(audit_id)

    async def _read_range(self, segment: Segment) -> None:
        late_elsewhere: frozenset[int] = frozenset()
        if segment.open_ids != "{}":
            bound = {"last": self.last_number, "from_id": segment.from_id, "to_id": segment.to_id}
            found = await _all(self.connection, "late_elsewhere", bound)
            late_elsewhere = frozenset(row[0] for row in found)
        while (row := await self._next(segment.to_id)) is not None:
            if row.audit_id in late_elsewhere:
                continue
            if segment.open_ids != "{}" and self.verifier.may_come_late(row.audit_id):
                self._strays += [row.audit_id][: STRAYS_MAX - len(self._strays)]
                continue
            self.verifier.row(row)

    async def _next(self, to_id: int) -> AuditRow | None:
        """Return the next row up to an id."""
        if not self._page and self._page_to < to_id:
            await self._read_page(to_id)
        if self._page and self._page[-1].audit_id <= to_id:
            return self._page.pop()
        return None

    async def _read_page(self, to_id: int) -> None:
        assert self.newest is not None
        limit = max(to_id, self.newest.to_id)
        bound = {"from_id": self._page_to + 1, "to_id": limit, "rows_max": PAGE_ROWS}
        self._page = [AuditRow(*row) for row in await _all(self.connection, "rows", bound)]
        self._page_to = self._page[-1].audit_id if len(self._page) == PAGE_ROWS else limit
        self._page.reverse()


_SEGMENT_FIELDS: Final = tuple(field.name for field in attrs.fields(Segment))


def _segment(row: Sequence[Any]) -> Segment:
    fields = dict(zip(_SEGMENT_FIELDS, row, strict=True))
    octets = {name: bytes(fields[name]) for name in ("rows_hash", "previous_hash", "hash", "seal")}
    return Segment(**{**fields, **octets, "late_ids": tuple(fields["late_ids"])})


def _bound(segment: Segment) -> dict[str, object]:
    bound = {name: getattr(segment, name) for name in _SEGMENT_FIELDS if name != "is_checkpoint"}
    return {**bound, "late_ids": list(segment.late_ids)}


async def _check_last(sealer: AuditSealer, last: Segment) -> bool | None:
    right = await sealer.check_async(last)
    if right is False or last.computed_hash() != last.hash:
        raise AuditChainError(
            f"segment {last.number} of the audit chain was not written by a holder of the key {last.key_id!r}, and "
            "nothing is put on it; `pggit-reactor audit verify` says more"
        )
    return right


async def _holders(connection: TrioConnection) -> frozenset[str]:
    return frozenset(row[0] for row in await _all(connection, "holders"))


async def _tail(connection: TrioConnection, to_id: int) -> tuple[int, str | None]:
    count, oldest = await _one(connection, "tail", {"to_id": to_id, "rows_max": TAIL_ROWS_MAX})
    return count, oldest


async def _one(
    connection: TrioConnection, name: str, bound: Mapping[str, object] | None = None
) -> tuple[Any, ...]:
    row = await (await connection.execute(_SQL[name], bound)).fetchone()
    assert row is not None
    return row


async def _all(
    connection: TrioConnection, name: str, bound: Mapping[str, object] | None = None
) -> list[tuple[Any, ...]]:
    return await (await connection.execute(_SQL[name], bound)).fetchall()
