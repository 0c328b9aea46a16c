"""What counts as an answer, what does not, and when the connection may carry another request."""

from __future__ import annotations

import pytest

from pggit_reactor.core.model import FailureKind
from pggit_reactor.delivery.answers import (
    BODY_OCTETS_MAX,
    HEAD_OCTETS_MAX,
    HEADER_FIELDS_MAX,
    INTERIM_ANSWERS_MAX,
    AnswerReader,
)
from pggit_reactor.delivery.failures import AttemptError

OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = b"Content-Length: 2\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"


def read(*pieces: bytes, end: bool = False, head_only: bool = False) -> AnswerReader:
    answer = AnswerReader(keep_octets_max=1024, head_only=head_only)
    for piece in pieces:
        if not answer.complete:
            answer.feed(piece)
    if end:
        answer.feed_end()
    return answer


def octet_by_octet(octets: bytes) -> AnswerReader:
    return read(*(octets[at : at + 1] for at in range(len(octets))))


MALFORMED = {
    "bare LF throughout": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "bare LF after a field": OK + b"A: b\nContent-Length: 2\r\n\r\nok",
    "bare LF at the end of the head": OK + LENGTH + b"\nok",
    "bare CR in a value": OK + b"A: b\rC: d\r\n" + LENGTH + b"\r\nok",
    "folded field": OK + b"A: b\r\n c\r\n" + LENGTH + b"\r\nok",
    "folded field with a tab": OK + b"A: b\r\n\tc\r\n" + LENGTH + b"\r\nok",
    "folded first field": OK + b" A: b\r\n" + LENGTH + b"\r\nok",
    "space before the colon": OK + b"Content-Length : 2\r\n\r\nok",
    "tab before the colon": OK + b"Content-Length\t: 2\r\n\r\nok",
    "space in a field name": OK + b"Content Length: 2\r\n\r\nok",
    "field without a colon": OK + b"nonsense\r\n" + LENGTH + b"\r\nok",
    "field without a name": OK + b": nonsense\r\n" + LENGTH + b"\r\nok",
    "NUL in a value": OK + b"A: b\0c\r\n" + LENGTH + b"\r\nok",
    "NUL in a name": OK + b"A\0: b\r\n" + LENGTH + b"\r\nok",
    "NUL in the reason": b"HTTP/1.1 200 O\0K\r\n" + LENGTH + b"\r\nok",
    "control character in a value": OK + b"A: b\x01c\r\n" + LENGTH + b"\r\nok",
    "escape in the reason": b"HTTP/1.1 200 \x1b[31mOK\r\n" + LENGTH + b"\r\nok",
    "negative length": OK + b"Content-Length: -2\r\n\r\nok",
    "signed length": OK + b"Content-Length: +2\r\n\r\nok",
    "hexadecimal length": OK + b"Content-Length: 0x2\r\n\r\nok",
    "length with an underscore": OK + b"Content-Length: 1_0\r\n\r\nok",
    "empty length": OK + b"Content-Length: \r\n\r\nok",
    "huge length": OK + b"Content-Length: 99999999999999999999999\r\n\r\nok",
    "endless length": OK + b"Content-Length: " + b"9" * 20_000 + b"\r\n\r\nok",
    "length twice, the same": OK + LENGTH + LENGTH + b"\r\nok",
    "length twice, conflicting": OK + LENGTH + b"Content-Length: 3\r\n\r\nok",
    "list of lengths": OK + b"Content-Length: 2, 2\r\n\r\nok",
    "length and chunked": OK + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": OK + b"Transfer-Encoding: chunked\r\n" + LENGTH + b"\r\n0\r\n\r\n",
    "other transfer coding": OK + b"Transfer-Encoding: gzip\r\n\r\n",
    "two transfer codings": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice in a list": OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "identity as transfer coding": OK + b"Transfer-Encoding: identity\r\n\r\nok",
    "quoted chunked": OK + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "chunked in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "HTTP/0.9": b"<html>hello</html>\r\n\r\n",
    "HTTP/0.9 by name": b"HTTP/0.9 200 OK\r\n\r\n",
    "HTTP/2 by name": b"HTTP/2.0 200 OK\r\n" + LENGTH + b"\r\nok",
    "HTTP/1.2": b"HTTP/1.2 200 OK\r\n" + LENGTH + b"\r\nok",
    "HTTP/1.10": b"HTTP/1.10 200 OK\r\n" + LENGTH + b"\r\nok",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/2 settings frame": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    "lower-case version": b"http/1.1 200 OK\r\n\r\n",
    "other protocol": b"RTSP/1.0 200 OK\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "status of two digits": b"HTTP/1.1 99 OK\r\n" + LENGTH + b"\r\nok",
    "status with a leading zero": b"HTTP/1.1 099 OK\r\n" + LENGTH + b"\r\nok",
    "status of four digits": b"HTTP/1.1 1000 OK\r\n" + LENGTH + b"\r\nok",
    "negative status": b"HTTP/1.1 -20 OK\r\n" + LENGTH + b"\r\nok",
    "status of other digits": "HTTP/1.1 ２００ OK\r\n\r\n".encode(),
    "two spaces before the status": b"HTTP/1.1  200 OK\r\n" + LENGTH + b"\r\nok",
    "tab before the status": b"HTTP/1.1\t200 OK\r\n" + LENGTH + b"\r\nok",
    "line end before the status line": b"\r\n" + OK + LENGTH + b"\r\nok",
    "empty lines only": b"\r\n\r\n\r\n\r\n",
    "space before the status line": b" " + OK + LENGTH + b"\r\nok",
    "switching protocols": b"HTTP/1.1 101 Gladly\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nxx",
    "switching protocols without a word": b"HTTP/1.1 101 Gladly\r\n\r\n",
    "a request": b"POST / HTTP/1.1\r\nHost: a\r\n\r\n",
    "TLS alert in clear": b"\x15\x03\x01\x00\x02\x02\x28",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "interim answer, then garbage": INTERIM + b"garbage\r\n\r\n",
    "interim answer with a chunked body": b"HTTP/1.1 103 X\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    + OK,
    "too many fields": OK + b"A: b\r\n" * (HEADER_FIELDS_MAX + 1) + b"\r\n",
    "too large a head": OK + b"A: " + b"b" * HEAD_OCTETS_MAX + b"\r\n\r\n",
    "too many interim answers": INTERIM * (INTERIM_ANSWERS_MAX + 1) + OK + LENGTH + b"\r\nok",
}


@pytest.mark.parametrize("octets", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize("feed", [read, octet_by_octet])
def test_what_is_not_an_answer_is_malformed(feed, octets: bytes):
    with pytest.raises(AttemptError) as caught:
        feed(octets)

    assert caught.value.failure.kind is FailureKind.MALFORMED


@pytest.mark.parametrize(
    "octets",
    [b"<", b"HTTQ", b"HTTP/1.1 2000", b"HTTP/1.1 200 OK\n", OK + b"A b", OK + b" "],
)
def test_what_cannot_become_an_answer_is_refused_at_once_and_not_at_the_deadline(octets: bytes):
    with pytest.raises(AttemptError):
        read(octets)


WELL_FORMED = {
    "with a length": OK + LENGTH + b"\r\nok",
    "without a reason": b"HTTP/1.1 200 \r\n" + LENGTH + b"\r\nok",
    "without the space before the reason": b"HTTP/1.1 200\r\n" + LENGTH + b"\r\nok",
    "reason outside ASCII": b"HTTP/1.1 200 Tr\xc3\xa8s bien\r\n" + LENGTH + b"\r\nok",
    "tab in a value": OK + b"A: b\tc\r\n" + LENGTH + b"\r\nok",
    "value outside ASCII": OK + b"A: caf\xe9\r\n" + LENGTH + b"\r\nok",
    "empty value": OK + b"A:\r\n" + LENGTH + b"\r\nok",
    "space around the length": OK + b"Content-Length:   2  \r\n\r\nok",
    "length with leading zeros": OK + b"Content-Length: 002\r\n\r\nok",
    "chunked": CHUNKED + b"2\r\nok\r\n0\r\n\r\n",
    "chunked by octets": CHUNKED + b"1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
    "chunked in capitals": OK + b"Transfer-Encoding: Chunked\r\n\r\n002\r\nok\r\n0\r\n\r\n",
    "chunk extension": CHUNKED + b"2;a=b\r\nok\r\n0\r\n\r\n",
    "trailers": CHUNKED + b"2\r\nok\r\n0\r\nRetry-After: 7\r\n\r\n",
    "after interim answers": INTERIM * INTERIM_ANSWERS_MAX + OK + LENGTH + b"\r\nok",
    "as many fields as allowed": OK + b"A: b\r\n" * (HEADER_FIELDS_MAX - 1) + LENGTH + b"\r\nok",
}


@pytest.mark.parametrize("octets", WELL_FORMED.values(), ids=WELL_FORMED.keys())
@pytest.mark.parametrize("feed", [read, octet_by_octet])
def test_a_well_formed_answer_is_read_whole_and_leaves_the_connection_fit_for_another(feed, octets: bytes):
    answer = feed(octets)

    assert (answer.status, answer.body(), answer.body_whole) == (200, b"ok", True)
    assert answer.complete
    assert answer.reusable


@pytest.mark.parametrize("status", [200, 204, 299, 304, 404, 599, 600, 999])
def test_any_status_from_200_to_999_is_an_answer(status: int):
    answer = read(b"HTTP/1.1 %d Whatever\r\nContent-Length: 0\r\n\r\n" % status)

    assert answer.status == status
    assert answer.complete


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_a_body_ends_with_its_head(status: int):
    answer = read(b"HTTP/1.1 %d Whatever\r\n\r\n" % status)

    assert answer.complete
    assert answer.reusable


UNFIT = {
    "octets after the body": OK + LENGTH + b"\r\nokX",
    "a second answer after the body": (OK + LENGTH + b"\r\nok") * 2,
    "a line end after the body": OK + LENGTH + b"\r\nok\r\n",
    "octets after the last chunk": CHUNKED + b"2\r\nok\r\n0\r\n\r\nX",
    "a line end after the last chunk": CHUNKED + b"2\r\nok\r\n0\r\n\r\n\r\n",
    "a second answer after the last chunk": CHUNKED + b"0\r\n\r\n" + OK + LENGTH + b"\r\nok",
    "a body where none may be": b"HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\nok",
    "a body promised where none may be": b"HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\n",
    "chunks promised where none may be": b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n",
    "Connection: close": OK + b"Connection: close\r\n" + LENGTH + b"\r\nok",
    "Connection: CLOSE among others": OK + b"Connection: foo, CLOSE\r\n" + LENGTH + b"\r\nok",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n" + LENGTH + b"\r\nok",
    "bad chunk size": CHUNKED + b"zz\r\nok\r\n0\r\n\r\n",
    "chunk size with 0x": CHUNKED + b"0x2\r\nok\r\n0\r\n\r\n",
    "negative chunk size": CHUNKED + b"-2\r\nok\r\n0\r\n\r\n",
    "signed chunk size": CHUNKED + b"+2\r\nok\r\n0\r\n\r\n",
    "empty chunk size": CHUNKED + b"\r\nok\r\n0\r\n\r\n",
    "chunk size with a space": CHUNKED + b"2 \r\nok\r\n0\r\n\r\n",
    "overflowing chunk size": CHUNKED + b"fffffffffffffffff\r\nok\r\n0\r\n\r\n",
    "chunk longer than its size": CHUNKED + b"1\r\nok\r\n0\r\n\r\n",
    "chunk size ended by a bare LF": CHUNKED + b"2\nok\r\n0\r\n\r\n",
    "chunk ended by a bare LF": CHUNKED + b"2\r\nok\n0\r\n\r\n",
    "NUL in a chunk extension": CHUNKED + b"2;a\0\r\nok\r\n0\r\n\r\n",
    "malformed trailer": CHUNKED + b"2\r\nok\r\n0\r\nno colon\r\n\r\n",
    "endless chunk extension": CHUNKED + b"2;" + b"x" * 9000 + b"\r\nok\r\n0\r\n\r\n",
    "endless trailers": CHUNKED + b"0\r\n" + b"A: b\r\n" * 2000 + b"\r\n",
    "a body of more than we read": OK + b"Content-Length: 70000\r\n\r\n" + b"x" * 70_000,
}


@pytest.mark.parametrize("octets", UNFIT.values(), ids=UNFIT.keys())
def test_an_answer_counts_from_its_head_on_but_a_doubtful_rest_ends_the_connection(octets: bytes):
    pieces = [octets[at : at + 4096] for at in range(0, len(octets), 4096)]

    answer = read(*pieces, end=True)

    assert answer.status in {200, 204}
    assert answer.complete
    assert not answer.reusable


def test_no_more_of_a_body_than_the_limit_is_read_and_no_more_than_asked_are_kept():
    answer = read(OK + b"\r\n")
    for _ in range(BODY_OCTETS_MAX // 1024):
        assert not answer.complete
        answer.feed(b"x" * 1024)

    assert answer.complete
    assert not answer.body_whole
    assert len(answer.body()) == 1024


def test_a_body_without_a_length_ends_with_the_connection():
    answer = read(OK + b"\r\n", b"o", b"k", end=True)

    assert answer.body() == b"ok"
    assert answer.body_whole
    assert not answer.reusable


@pytest.mark.parametrize("head", [OK + b"Content-Length: 5\r\n\r\n", CHUNKED + b"5\r\n"])
def test_a_body_that_ends_before_its_length_is_not_whole(head: bytes):
    answer = read(head + b"ok", end=True)

    assert answer.status == 200
    assert not answer.body_whole


def test_the_end_of_the_connection_in_the_head_is_no_answer():
    answer = read(OK + b"Content-Le", end=True)

    assert answer.status is None
    assert answer.started


def test_an_answer_to_a_head_request_has_no_body_whatever_its_length_says():
    answer = read(OK + LENGTH + b"\r\n", head_only=True)

    assert answer.complete
    assert answer.body_whole
    assert answer.body() == b""


def test_fields_of_interim_answers_and_trailers_are_not_those_of_the_answer():
    interim = b"HTTP/1.1 103 Early\r\nRetry-After: 1\r\n\r\n"
    answer = read(interim + CHUNKED + b"0\r\nRetry-After: 2\r\n\r\n")

    assert answer.retry_after is None
    assert answer.fields == [(b"Transfer-Encoding", b"chunked")]


def test_retry_after_is_kept_as_sent_and_cut_short():
    short = read(OK + LENGTH + b"RETRY-AFTER: Fri, 31 Dec 1999 23:59:59 GMT\r\n\r\nok")
    long = read(OK + LENGTH + b"Retry-After: " + b"9" * 1000 + b"\r\n\r\nok")

    assert short.retry_after == "Fri, 31 Dec 1999 23:59:59 GMT"
    assert long.retry_after == "9" * 64


def test_the_excerpt_holds_nothing_that_rules_a_terminal():
    body = "a\x1b[2J\0b\r\nc\x9b\u202ed\xff".encode() + b"\xff"
    answer = read(OK + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    assert answer.excerpt() == "a\ufffd[2J\ufffdb\ufffd\ufffdc\ufffd\ufffdd\xff\ufffd"


def test_an_answer_behind_the_answer_is_no_part_of_its_text():
    """Found by fuzzing: a second answer in one read was added to what people see of the first."""
    answer = AnswerReader(keep_octets_max=1024)
    answer.feed(
        b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nnoHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
    )

    assert (answer.status, answer.body(), answer.reusable) == (500, b"no", False)


def test_an_interim_answer_with_a_transfer_coding_is_malformed():
    """Found by fuzzing: h11 refuses it, and whoever reads a body into it sees other answers behind it."""
    answer = AnswerReader(keep_octets_max=1024)

    with pytest.raises(AttemptError, match="interim answer has a Transfer-Encoding"):
        answer.feed(b"HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")


@pytest.mark.parametrize("field", [b"Transfer-Encoding: A: b", b"content-length: 7"])
def test_a_trailer_that_speaks_of_framing_makes_the_connection_unfit(field):
    """Found by fuzzing beside h11."""
    answer = AnswerReader(keep_octets_max=1024)
    answer.feed(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n" + field + b"\r\n\r\n"
    )

    assert (answer.status, answer.body(), answer.reusable) == (200, b"hello", False)
