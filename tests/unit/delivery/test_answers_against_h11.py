"""What we take for an answer, another parser takes for the same answer; and cutting octets apart changes nothing."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fuzz.targets import read_answer, read_answer_with_h11

KEPT_OCTETS_MAX = 10_000

STATUS_LINES = st.sampled_from(
    [
        b"HTTP/1.1 200 OK",
        b"HTTP/1.0 200 OK",
        b"HTTP/1.1 204",
        b"HTTP/1.1 503 No",
        b"HTTP/1.1 100 Go on",
        b"HTTP/1.1 2000",
    ]
)
FIELDS = st.sampled_from(
    [
        b"Content-Length: 5",
        b"Content-Length: 0",
        b"content-length: 05",
        b"Content-Length: 5, 5",
        b"Content-Length : 5",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: gzip",
        b"Connection: close",
        b"Connection: keep-alive",
        b"X: y",
        b" folded",
        b"no colon",
    ]
)
LINE_ENDS = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n"])
BODIES = st.sampled_from(
    [
        b"",
        b"hello",
        b"hello!",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"5;x=y\r\nhello\r\n0\r\nA: b\r\n\r\n",
        b"6\r\nhello\r\n0\r\n\r\n",
        b"0\r\n\r\n",
    ]
)


@st.composite
def answers(draw) -> bytes:
    lines = [draw(STATUS_LINES), *draw(st.lists(FIELDS, max_size=4)), b""]
    head = b"".join(line + draw(LINE_ENDS) for line in lines)
    return head + draw(BODIES)


OCTETS = st.one_of(st.lists(answers(), min_size=1, max_size=3).map(b"".join), st.binary(max_size=200))


@given(OCTETS)
def test_an_answer_that_leaves_the_connection_fit_is_the_same_to_h11(octets: bytes):
    answer = read_answer([octets], KEPT_OCTETS_MAX)

    if answer is not None and answer.reusable:
        assert read_answer_with_h11(octets) == (answer.status, answer.body())


@given(OCTETS, st.lists(st.integers(0, 200), max_size=6))
def test_how_octets_are_cut_apart_decides_nothing_about_the_answer(octets: bytes, cuts: list[int]):
    edges = [0, *sorted(min(cut, len(octets)) for cut in cuts), len(octets)]
    pieces = [octets[a:b] for a, b in pairwise(edges) if a < b]
    if not octets:
        return

    whole, cut = (read_answer(some, KEPT_OCTETS_MAX) for some in ([octets], pieces))

    # One read sees beyond the answer's end and the other may not, so `reusable` may differ; the answer may not.
    assert (whole is None) == (cut is None)
    if whole is not None and cut is not None:
        assert (whole.status, whole.fields) == (cut.status, cut.fields)
        assert whole.body() == cut.body()
