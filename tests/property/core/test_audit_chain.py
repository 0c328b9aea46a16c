"""The audit chain by itself: any one change of a sealed log is found, and what nobody changed is whole."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from hypothesis import assume, given
from hypothesis import strategies as st

from pggit_reactor.core.audit_chain import (
    FIRST_ID,
    GENESIS_HASH,
    AuditRow,
    BreakKind,
    ChainVerifier,
    Segment,
    rows_hash,
)

# Few letters, among them those of the canonical form, so that fields run into each other if they can.
texts = st.none() | st.text(alphabet="1,:-aü", max_size=4)
# Numbers, times, addresses, UUIDs: PostgreSQL prints none of them with a comma, and none as nothing.
printed = st.none() | st.text(alphabet="1:-a", min_size=1, max_size=3)
FIELDS = {
    **dict.fromkeys(("operation", "error_message", "encryption_algorithm", "user_id", "details"), texts),
    **dict.fromkeys(
        (
            "webhook_id", "delivery_id", "status_code", "signature_verified", "ip_address", "occurred_us",
            "request_id", "salt",
        ),
        printed,
    ),
}  # fmt: skip
rows = st.builds(AuditRow, audit_id=st.integers(1, 9), **FIELDS)


@attrs.frozen
class Sealed:
    """A log and its chain: the rows of each range, and segments that may name some of an earlier one as late."""

    rows: tuple[AuditRow, ...]
    segments: tuple[Segment, ...]


def seal(ranges: Sequence[Sequence[AuditRow]], late: Sequence[frozenset[int]]) -> tuple[Segment, ...]:
    """Make the chain: *late* has, for each range, which of its rows come one segment later."""
    chain: list[Segment] = []
    from_id, previous, waiting = FIRST_ID, GENESIS_HASH, []
    for number, (members, later) in enumerate(zip((*ranges, ()), (*late, frozenset()), strict=True), start=1):
        here = [row for row in members if row.audit_id not in later]
        to_id = members[-1].audit_id if members else from_id - 1
        sealed = sorted([*waiting, *here], key=lambda row: row.audit_id)
        segment = Segment(
            number=number,
            from_id=from_id,
            to_id=to_id,
            row_count=len(sealed),
            late_ids=tuple(row.audit_id for row in waiting),
            open_ids="{" + ",".join(f"[{one},{one + 1})" for one in sorted(later)) + "}",
            rows_hash=rows_hash([row.digest() for row in sealed]),
            previous_hash=previous,
            previous_proven=True,
            sealed_us=number,
            key_id="k",
            hash=b"",
            seal=b"right",
        )
        segment = attrs.evolve(segment, hash=segment.computed_hash())
        chain.append(segment)
        from_id, previous = to_id + 1, segment.hash
        waiting = [row for row in members if row.audit_id in later]
    return tuple(chain)


@st.composite
def sealed_logs(draw: st.DrawFn) -> Sealed:
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    gaps = iter(draw(st.lists(st.integers(1, 3), min_size=sum(sizes), max_size=sum(sizes))))
    ranges, late, audit_id = [], [], draw(st.integers(-3, 3))
    for size in sizes:
        members = []
        for _ in range(size):
            audit_id += next(gaps)
            members.append(attrs.evolve(draw(rows), audit_id=audit_id))
        # The last row of a range is never late: a range ends with a row that was seen.
        late.append(
            frozenset(row.audit_id for row in members[:-1]) if draw(st.booleans()) else frozenset[int]()
        )
        ranges.append(members)
    return Sealed(rows=tuple(row for members in ranges for row in members), segments=seal(ranges, late))


def verify(log: Sequence[AuditRow], segments: Sequence[Segment]) -> list[BreakKind]:
    """Read *log* and *segments* as the database's reader does, and return what is wrong."""
    verifier = ChainVerifier(lambda segment: segment.seal == b"right")
    late = {audit_id for segment in segments for audit_id in segment.late_ids}
    rest = sorted(log, key=lambda row: row.audit_id)
    for segment in segments:
        verifier.begin(segment)
        for row in rest:
            if row.audit_id in segment.late_ids:
                verifier.row(row)
        for row in rest:
            if segment.from_id <= row.audit_id <= segment.to_id and row.audit_id not in late:
                if verifier.may_come_late(row.audit_id):
                    verifier.stray(row.audit_id)
                else:
                    verifier.row(row)
        verifier.end()
    verifier.finish()
    return [found.kind for found in verifier.breaks]


@given(log=sealed_logs())
def test_a_log_that_nobody_changed_is_whole(log):
    assert verify(log.rows, log.segments) == []


@given(log=sealed_logs(), data=st.data())
def test_a_change_of_any_field_of_any_row_is_found(log, data):
    row = data.draw(st.sampled_from(log.rows))
    name = data.draw(st.sampled_from(sorted(FIELDS)))
    changed = attrs.evolve(row, **{name: data.draw(FIELDS[name])})
    assume(getattr(changed, name) != getattr(row, name))
    # The salt counts for something only where there is a text.
    assume(name != "salt" or row.texts_digest())

    assert verify([changed if one is row else one for one in log.rows], log.segments) != []


@given(log=sealed_logs(), data=st.data())
def test_a_row_that_is_taken_away_is_found(log, data):
    row = data.draw(st.sampled_from(log.rows))

    assert verify([one for one in log.rows if one is not row], log.segments) != []


@given(log=sealed_logs(), extra=rows, data=st.data())
def test_a_row_that_is_put_in_is_found(log, extra, data):
    last = log.segments[-1].to_id
    taken = {row.audit_id for row in log.rows}
    new_id = data.draw(st.integers(last - 30, last).filter(lambda audit_id: audit_id not in taken))

    assert verify([*log.rows, attrs.evolve(extra, audit_id=new_id)], log.segments) != []


@given(log=sealed_logs(), data=st.data())
def test_two_rows_that_change_places_are_found(log, data):
    assume(len(log.rows) > 1)
    one, other = data.draw(st.lists(st.sampled_from(log.rows), min_size=2, max_size=2, unique_by=id))
    swapped = {
        one.audit_id: attrs.evolve(other, audit_id=one.audit_id),
        other.audit_id: attrs.evolve(one, audit_id=other.audit_id),
    }
    assume(swapped[one.audit_id].digest() != one.digest())

    assert verify([swapped.get(row.audit_id, row) for row in log.rows], log.segments) != []


@given(log=sealed_logs(), data=st.data())
def test_a_segment_that_is_taken_away_is_found_unless_it_was_the_end(log, data):
    segment = data.draw(st.sampled_from(log.segments[:-1]))

    kinds = verify(log.rows, [one for one in log.segments if one is not segment])
    assert BreakKind.SEGMENT_MISSING in kinds


CHANGES = {
    "number": st.integers(1, 9),
    "from_id": st.integers(-9, 9),
    "to_id": st.integers(-9, 30),
    "row_count": st.integers(0, 9),
    "late_ids": st.lists(st.integers(-3, 9), max_size=2).map(tuple),
    "open_ids": st.sampled_from(["{}", "{[1,2)}", "{[0,9)}"]),
    "rows_hash": st.binary(min_size=32, max_size=32),
    "previous_hash": st.binary(min_size=32, max_size=32),
    "previous_proven": st.booleans(),
    "sealed_us": st.integers(0, 9),
    "key_id": st.sampled_from(["k", "l"]),
    "hash": st.binary(min_size=32, max_size=32),
    "seal": st.just(b"wrong"),
}


@given(log=sealed_logs(), data=st.data())
def test_a_change_of_any_field_of_any_segment_is_found(log, data):
    segment = data.draw(st.sampled_from(log.segments))
    name = data.draw(st.sampled_from(sorted(CHANGES)))
    changed = attrs.evolve(segment, **{name: data.draw(CHANGES[name])})
    assume(changed != segment)

    assert verify(log.rows, [changed if one is segment else one for one in log.segments]) != []


@given(row=rows)
def test_erased_texts_leave_the_hash_as_it_was(row):
    digest = row.texts_digest()
    erased = attrs.evolve(row, error_message=None, details=None, salt=None, erased_digest=digest or None)

    assert erased.digest() == row.digest()


@given(row=rows, digest=st.text(alphabet="0123456789abcdef", min_size=64, max_size=64))
def test_a_digest_beside_texts_does_not_hide_a_change_of_them(row, digest):
    assume(row.error_message is not None or row.details is not None)

    assert attrs.evolve(row, erased_digest=digest).digest() == row.digest()


@given(one=rows, changes=st.fixed_dictionaries({}, optional=FIELDS))
def test_two_rows_have_one_hash_only_if_they_say_the_same(one, changes):
    def said(row: AuditRow) -> AuditRow:
        return row if row.texts_digest() else attrs.evolve(row, salt=None)

    other = attrs.evolve(one, **changes)

    assert (one.digest() == other.digest()) == (said(one) == said(other))


def test_a_checkpoint_stands_for_what_was_dropped():
    rest = [AuditRow(audit_id=3)]
    chain = seal([[AuditRow(audit_id=1)], rest], [frozenset(), frozenset()])

    assert verify(rest, [attrs.evolve(chain[0], is_checkpoint=True), *chain[1:]]) == []
    assert verify(rest, chain[1:]) == [BreakKind.SEGMENT_MISSING]
    assert verify(rest, [*chain[:1], attrs.evolve(chain[1], is_checkpoint=True), chain[2]]) != []


def test_breaks_are_counted_beyond_those_that_are_kept():
    verifier = ChainVerifier()
    for audit_id in range(2000):
        verifier.stray(audit_id)

    assert (len(verifier.breaks), verifier.break_count) == (1000, 2000)
