from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pggit_reactor.core.resealing import (
    ROUNDS_MAX,
    Progress,
    WorkerKeys,
    in_the_way,
    is_round_due,
    pause_seconds,
    retirable,
)

COUNTS = st.integers(0, 1_000_000)
SECONDS = st.floats(0, 1e6)
IDS = st.sampled_from(["a", "b", "c", "d"])


@given(done=COUNTS, total=COUNTS, elapsed_seconds=SECONDS, rate=st.floats(1, 1e6), batch=st.integers(1, 1000))
def test_after_the_pause_the_pace_is_no_quicker_than_the_rate(done, total, elapsed_seconds, rate, batch):
    progress = Progress(done=done, total=total, elapsed_seconds=elapsed_seconds)
    pause = pause_seconds(progress, rate=rate)

    assert pause >= 0
    assert done <= rate * (elapsed_seconds + pause) * (1 + 1e-9)
    assert pause == 0 or done / rate > elapsed_seconds


@given(done=COUNTS, total=COUNTS, elapsed_seconds=SECONDS)
def test_a_share_is_a_share_and_what_is_done_leaves_no_time(done, total, elapsed_seconds):
    progress = Progress(done=done, total=total, elapsed_seconds=elapsed_seconds)

    assert 0 <= progress.share <= 1
    assert (progress.share == 1) == (progress.left == 0)
    assert (progress.left_seconds == 0) or progress.left > 0
    assert progress.left_seconds is None or progress.left_seconds >= 0
    assert (progress.left_seconds is None) == (done == 0 < total)


@given(st.lists(st.tuples(COUNTS, COUNTS), min_size=ROUNDS_MAX + 1))
def test_rounds_end(rounds):
    number = 0
    for left, done in rounds:
        if not is_round_due(number=number, left=left, done=done):
            break
        number += 1

    assert number <= ROUNDS_MAX


@given(left=COUNTS, done=COUNTS)
def test_a_first_round_is_due_where_anything_is_left(left, done):
    assert is_round_due(number=0, left=left, done=done) == (left > 0)


@given(in_use=st.sets(IDS), counts=st.dictionaries(IDS | st.none(), st.integers(0, 3)), active_id=IDS)
def test_a_key_is_retired_only_when_nothing_needs_it(in_use, counts, active_id):
    gone = retirable(in_use=in_use, counts=counts, active_id=active_id)

    assert set(gone) <= in_use - {active_id}
    assert all(not counts.get(key_id) for key_id in gone)
    if not counts.get(None):
        assert set(gone) == {key_id for key_id in in_use - {active_id} if not counts.get(key_id)}
    else:
        assert gone == ()


WORKERS = st.lists(
    st.builds(
        WorkerKeys,
        worker_id=st.just("w"),
        host=st.just("h"),
        pid=st.just(1),
        key_ids=st.none() | st.lists(IDS, unique=True).map(tuple),
        has_heard=st.booleans(),
    )
)


@given(workers=WORKERS, key_id=IDS)
def test_whoever_is_not_known_to_have_the_key_is_in_the_way(workers, key_id):
    blocking = in_the_way(workers, key_id)

    for worker in workers:
        has_it = worker.has_heard and worker.key_ids is not None and key_id in worker.key_ids
        assert (worker in blocking) == (not has_it)
