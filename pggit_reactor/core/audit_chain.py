"""The audit chain: which rows a segment seals, the hash of each, and what a broken chain looks like.

A *row* of the audit log is never written twice, so its hash is made when it is sealed: SHA-256 over its fields
in a canonical text (`AuditRow.digest`), which no setting of a session and no version of PostgreSQL changes.
What erasure may take away (error message, details) enters by a digest of its own, salted with the row's random
salt: once texts and salt are gone, the digest alone is left beside the row, and the row's hash stays the same.

A *segment* seals every row of a range of ids, and names by id the rows of earlier ranges that became visible
late: ids come from a sequence, so a transaction that stays open brings low ids to light after higher ones. What
an open transaction may still bring is written down when a range is sealed (`open_ids`); nothing else may ever
appear in it. A segment holds the hash of the one before, and a seal, keyed with a master key that is not in the
database: who may write everything in the database still cannot make a chain that verifies.

`ChainVerifier` reads segments and rows in order, in bounded memory, and says what is wrong.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Final

import attrs

HASH_OCTETS: Final = 32
FIRST_ID: Final = -(1 << 63) + 1
"""The first segment's range begins here: whatever was in the log before is sealed too."""
GENESIS_HASH: Final = bytes(HASH_OCTETS)
"""What stands for the hash before the first segment."""
BREAKS_KEPT_MAX: Final = 1000
"""Breaks are counted without end and described up to here."""

_ROW_PREFIX: Final = "pggit-audit-row-1"
_SEGMENT_PREFIX: Final = "pggit-audit-segment-1"
_SPAN: Final = re.compile(r"[\[(](-?\d*),(-?\d*)[\])]")


@attrs.frozen
class AuditRow:
    """One row, as text that PostgreSQL's own functions made; None for NULL. The fields stand as in the table.

    Times are microseconds since 1970 (or ``Infinity``), addresses have their mask length, JSON is as printed.
    """

    audit_id: int
    webhook_id: str | None = None
    delivery_id: str | None = None
    operation: str | None = None
    status_code: str | None = None
    error_message: str | None = attrs.field(default=None, repr=False)
    signature_verified: str | None = None
    encryption_algorithm: str | None = None
    ip_address: str | None = None
    occurred_us: str | None = None
    user_id: str | None = None
    request_id: str | None = None
    details: str | None = attrs.field(default=None, repr=False)
    salt: str | None = attrs.field(default=None, repr=False)
    erased_digest: str | None = None
    """Hex; what `texts_digest` was before the texts were erased."""

    def texts_digest(self) -> str:
        """Return the digest of what erasure may take away, as hex; empty where there is and was nothing."""
        if self.error_message is None and self.details is None:
            return self.erased_digest or ""
        texts = f"{self.salt or ''},{_framed(self.error_message)}{_framed(self.details)}"
        return hashlib.sha256(texts.encode()).hexdigest()

    def digest(self) -> bytes:
        """Return the hash of the row."""
        # No number holds a comma, and texts say how long they are: no two rows have the same canonical text.
        numbers = (
            self.webhook_id, self.delivery_id, self.status_code, self.signature_verified, self.occurred_us,
            self.ip_address, self.request_id,
        )  # fmt: skip
        canonical = (
            f"{_ROW_PREFIX},{self.audit_id},{','.join(number or '' for number in numbers)},"
            f"{_framed(self.operation)}{_framed(self.encryption_algorithm)}{_framed(self.user_id)}"
            f"{self.texts_digest()}"
        )
        return hashlib.sha256(canonical.encode()).digest()


def _framed(text: str | None) -> str:
    """Return *text* with the number of its octets before it; a minus for None."""
    return "-," if text is None else f"{len(text.encode())}:{text},"


@attrs.frozen(kw_only=True)
class Segment:
    """One link of the chain."""

    number: int
    """From 1, without a gap."""
    from_id: int
    to_id: int
    """The last id of the range; one below *from_id* where the segment has no range."""
    row_count: int
    late_ids: tuple[int, ...] = ()
    """Rows of earlier ranges, ascending, which it seals too."""
    open_ids: str = "{}"
    """int8multirange: ids of its range that a transaction may still have brought when it was sealed."""
    rows_hash: bytes
    """SHA-256 over the hashes of its rows, by id."""
    previous_hash: bytes
    previous_proven: bool
    """Whether the seal of the segment before was checked, and right, when this one was put on it."""
    sealed_us: int
    """When, in microseconds since 1970, by the database's clock."""
    key_id: str
    """The master key of its seal."""
    hash: bytes
    seal: bytes = attrs.field(repr=False)
    is_checkpoint: bool = False
    """Its rows, and all segments before it, were dropped because they were old."""

    def header(self) -> bytes:
        """Return what hash and seal are made of."""
        late = ",".join(map(str, self.late_ids))
        return "\n".join(
            (
                _SEGMENT_PREFIX,
                str(self.number),
                str(self.from_id),
                str(self.to_id),
                str(self.row_count),
                late,
                self.open_ids,
                self.rows_hash.hex(),
                self.previous_hash.hex(),
                "proven" if self.previous_proven else "unproven",
                str(self.sealed_us),
                self.key_id,
            )
        ).encode()

    def computed_hash(self) -> bytes:
        """Return what `hash` must be."""
        return hashlib.sha256(self.header()).digest()

    def open_spans(self) -> tuple[tuple[int, int], ...]:
        """Return `open_ids` as pairs of first and last."""
        # A discrete range's canonical form: the lower bound belongs to it, the upper does not.
        return tuple((int(span[1]), int(span[2]) - 1) for span in _SPAN.finditer(self.open_ids))


class BreakKind(StrEnum):
    """What can be wrong with a chain."""

    SEGMENT_MISSING = "segment_missing"
    SEGMENT_CHANGED = "segment_changed"
    """Its hash is not that of what it says, or the next one does not hold it."""
    SEAL_WRONG = "seal_wrong"
    """The master key did not make this seal: somebody without the key wrote the segment."""
    SEAL_UNPROVEN = "seal_unproven"
    """The key ring lacks the key, and nothing later proves the segment."""
    ROW_MISSING = "row_missing"
    ROW_INSERTED = "row_inserted"
    ROW_CHANGED = "row_changed"
    """Changed, or taken out and another put in."""
    ANCHOR = "anchor"
    """Not the chain that was once noted down."""
    DROPPED_EARLY = "dropped_early"
    """Rows are gone that should have been kept for longer."""


@attrs.frozen(kw_only=True)
class Break:
    """Something that is wrong, and where."""

    kind: BreakKind
    segment: int | None
    """The number of a segment."""
    what: str


SealCheck = Callable[[Segment], bool | None]
"""Tells whether a segment's seal is right; None: the key for it is not here."""


@attrs.define(eq=False)
class ChainVerifier:
    """Reads a chain in order: for each segment `begin`, its rows by id (`row`), `end`; and `finish` at last.

    A checkpoint has no rows. Rows that no segment may hold go to `stray`.
    """

    check_seal: SealCheck | None = None
    """None: nobody gave a key, and seals are not looked at."""
    breaks: list[Break] = attrs.field(factory=list, init=False)
    break_count: int = attrs.field(default=0, init=False)
    segments: int = attrs.field(default=0, init=False)
    rows: int = attrs.field(default=0, init=False)
    erased: int = attrs.field(default=0, init=False)
    late: int = attrs.field(default=0, init=False)
    seals_checked: int = attrs.field(default=0, init=False)
    unknown_keys: dict[str, int] = attrs.field(factory=dict, init=False)
    """Seals that could not be checked, by key id."""
    last: Segment | None = attrs.field(default=None, init=False)
    _last_seal: bool | None = attrs.field(default=None, init=False)
    _current: Segment | None = attrs.field(default=None, init=False)
    _rows_hash: hashlib._Hash = attrs.field(factory=hashlib.sha256, init=False)
    _seen: int = attrs.field(default=0, init=False)
    _dropped_to: int = attrs.field(default=FIRST_ID - 1, init=False)
    _spans: list[tuple[int, int, int]] = attrs.field(factory=list, init=False)
    """Open ids of segments so far: first, last, number; ascending."""

    def begin(self, segment: Segment) -> None:
        """Judge a segment by itself and by the one before."""
        assert self._current is None
        self._judge_place(segment)
        if segment.computed_hash() != segment.hash:
            self._found(BreakKind.SEGMENT_CHANGED, segment, "its hash is not that of what it says")
        seal = self._judge_seal(segment)
        if segment.is_checkpoint:
            self._dropped_to = segment.to_id
        else:
            self._judge_late(segment)
        self._spans += ((first, last, segment.number) for first, last in segment.open_spans())
        self.last, self._last_seal, self._current = segment, seal, segment
        self._rows_hash, self._seen = hashlib.sha256(), 0
        self.segments += 1
        self.late += len(segment.late_ids)

    def row(self, row: AuditRow) -> None:
        """Take the next row of the segment, by id."""
        self._rows_hash.update(row.digest())
        self._seen += 1
        self.erased += row.erased_digest is not None

    def end(self) -> None:
        """Judge the rows that were taken."""
        segment = self._current
        assert segment is not None
        self._current = None
        if segment.is_checkpoint:
            return
        self.rows += self._seen
        difference = self._seen - segment.row_count
        where = f"ids {segment.from_id} to {segment.to_id}"
        if difference < 0:
            self._found(BreakKind.ROW_MISSING, segment, f"{-difference} of its rows are missing ({where})")
        elif difference > 0:
            self._found(BreakKind.ROW_INSERTED, segment, f"{difference} rows were inserted ({where})")
        elif self._rows_hash.digest() != segment.rows_hash:
            self._found(BreakKind.ROW_CHANGED, segment, f"a row is not what was sealed ({where})")

    def may_come_late(self, audit_id: int) -> bool:
        """Tell whether an id of a range so far was left open when that was sealed."""
        place = bisect_right(self._spans, (audit_id, 1 << 63, 0)) - 1
        return place >= 0 and self._spans[place][0] <= audit_id <= self._spans[place][1]

    def stray(self, audit_id: int) -> None:
        """Note a row that is in no segment and in no range that was left open."""
        self._note(BreakKind.ROW_INSERTED, None, f"row {audit_id} was inserted where everything was sealed")

    def dropped_early(self, what: str) -> None:
        """Note that history begins later than it may."""
        self._note(BreakKind.DROPPED_EARLY, None, what)

    def finish(self, *, anchor: tuple[int, str] | None = None, anchor_hash: bytes | None = None) -> None:
        """Judge the end of the chain.

        *anchor* is a segment's number and hash (hex) that somebody noted; *anchor_hash* what stands there now.
        """
        if anchor is not None and (anchor_hash is None or anchor_hash.hex() != anchor[1].lower()):
            what = "is not there" if anchor_hash is None else f"has the hash {anchor_hash.hex()}"
            self._note(
                BreakKind.ANCHOR, anchor[0], f"segment {anchor[0]} {what}, which is not what was noted"
            )
        if self.check_seal is not None and self.last is not None and self._last_seal is None:
            what = f"the newest segment names the key {self.last.key_id!r}, which is not in the key ring"
            self._found(BreakKind.SEAL_UNPROVEN, self.last, what)

    def _judge_place(self, segment: Segment) -> None:
        before = self.last
        if before is None:
            begins_right = segment.is_checkpoint or (
                segment.number == 1 and segment.previous_hash == GENESIS_HASH and segment.from_id == FIRST_ID
            )
            if not begins_right:
                what = f"the chain begins with segment {segment.number}; those before it are missing"
                self._found(BreakKind.SEGMENT_MISSING, segment, what)
            return
        if segment.is_checkpoint:
            self._found(
                BreakKind.SEGMENT_CHANGED, segment, "its rows are marked as dropped, those before it not"
            )
        if segment.number != before.number + 1:
            what = f"after segment {before.number} comes segment {segment.number}"
            self._found(BreakKind.SEGMENT_MISSING, segment, what)
        elif segment.previous_hash != before.hash or segment.from_id != before.to_id + 1:
            what = f"it does not follow segment {before.number}: one of the two was changed"
            self._found(BreakKind.SEGMENT_CHANGED, segment, what)

    def _judge_seal(self, segment: Segment) -> bool | None:
        if self.check_seal is None:
            return None
        right = self.check_seal(segment)
        if right is None:
            self.unknown_keys[segment.key_id] = self.unknown_keys.get(segment.key_id, 0) + 1
        else:
            self.seals_checked += 1
        if right is False:
            what = f"its seal was not made with the master key {segment.key_id!r}"
            self._found(BreakKind.SEAL_WRONG, segment, what)
        if self.last is not None and not segment.previous_proven and self._last_seal is not True:
            what = f"nobody could check segment {self.last.number} when this one was put on it"
            self._found(BreakKind.SEAL_UNPROVEN, segment, what)
        return right

    def _judge_late(self, segment: Segment) -> None:
        for audit_id in segment.late_ids:
            # What was left open before the checkpoint is not known any more.
            if audit_id > self._dropped_to and not self.may_come_late(audit_id):
                what = f"it names row {audit_id} as late, and nothing was open there"
                self._found(BreakKind.SEGMENT_CHANGED, segment, what)

    def _found(self, kind: BreakKind, segment: Segment, what: str) -> None:
        self._note(kind, segment.number, what)

    def _note(self, kind: BreakKind, number: int | None, what: str) -> None:
        self.break_count += 1
        if len(self.breaks) < BREAKS_KEPT_MAX:
            self.breaks.append(Break(kind=kind, segment=number, what=what))


def rows_hash(digests: Sequence[bytes]) -> bytes:
    """Return the hash of a segment whose rows have *digests*, by id."""
    return hashlib.sha256(b"".join(digests)).digest()
