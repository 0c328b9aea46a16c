"""Receivers that answer badly, too much, too slowly or not at all: each costs one attempt and nothing else."""

from __future__ import annotations

import tracemalloc

import pytest
import trio

from pggit_reactor.core.model import Answer, AttemptFailure, FailureKind
from pggit_reactor.testing.receiver import (
    Then,
    answer,
    cut,
    drip,
    early,
    endless,
    hang,
    hang_up,
    raw,
    redirect,
)

DEADLINE = 0.3
SLACK = 2.0  # of a busy machine
MEMORY_MAX = 4 * 1024 * 1024
OK_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"

NO_ANSWER = {
    "black hole": (hang(), FailureKind.TIMEOUT, "waiting for the head"),
    "black hole before the body": (early(hang()), FailureKind.TIMEOUT, "waiting for the head"),
    "slow loris in the head": (
        drip(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1000, gap_seconds=0.01),
        FailureKind.TIMEOUT,
        "in the middle of the answer's head",
    ),
    "stall in the head": (
        raw(b"HTTP/1.1 200 OK\r\n", then=Then.HANG),
        FailureKind.TIMEOUT,
        "in the middle of the answer's head",
    ),
    "endless head": (
        endless(b"HTTP/1.1 200 OK\r\nX: ", b"y" * 8192),
        FailureKind.MALFORMED,
        "head is larger",
    ),
    "endless fields": (
        endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 50),
        FailureKind.MALFORMED,
        "head is larger",
    ),
    "endless interim answers": (
        endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        FailureKind.MALFORMED,
        "interim answers",
    ),
    "endless interim fields": (
        endless(b"HTTP/1.1 103 X\r\n", b"X: y\r\n" * 50),
        FailureKind.MALFORMED,
        "head is larger",
    ),
    "endless line ends": (endless(b"", b"\r\n" * 1000), FailureKind.MALFORMED, "malformed answer"),
    "too many fields": (
        raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 101 + b"\r\n"),
        FailureKind.MALFORMED,
        "more than 100 header fields",
    ),
    "garbage": (raw(bytes(range(256))), FailureKind.MALFORMED, "malformed answer"),
    "HTTP/0.9": (raw(b"<p>hello</p>"), FailureKind.MALFORMED, "malformed answer"),
    "switching protocols": (
        raw(b"HTTP/1.1 101 Gladly\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", then=Then.HANG),
        FailureKind.MALFORMED,
        "101",
    ),
    "reset after the request": (cut(), FailureKind.RESET, "without an answer"),
    "reset before the body": (early(cut()), FailureKind.RESET, "without an answer"),
    "close after the request": (hang_up(), FailureKind.RESET, "closed the connection without an answer"),
    "reset in the head": (raw(b"HTTP/1.1 200 O", then=Then.RESET), FailureKind.RESET, ""),
    "close in the head": (
        raw(b"HTTP/1.1 200 OK\r\nContent-Le"),
        FailureKind.RESET,
        "middle of the answer's head",
    ),
    "close after an interim answer": (
        raw(b"HTTP/1.1 100 Continue\r\n\r\n"),
        FailureKind.RESET,
        "middle of the answer's head",
    ),
}


@pytest.mark.parametrize(("behaviour", "kind", "words"), NO_ANSWER.values(), ids=NO_ANSWER.keys())
async def test_what_is_no_answer_fails_in_bounded_time_for_its_own_reason(
    receiver, sender, behaviour, kind, words
):
    receiver.script("/bad", behaviour)

    with trio.fail_after(DEADLINE + SLACK):
        result = await sender.post("/bad", deadline_seconds=DEADLINE)
        await receiver.wait_open(0)

    assert isinstance(result.outcome, AttemptFailure)
    assert result.outcome.kind is kind
    assert words in result.outcome.detail
    assert not result.resent, "only a connection that was kept may fail and be replaced"
    assert sender.transport.idle_connections == 0


DELIVERED = {
    "body cut by a reset": raw(OK_HEAD + b"half", then=Then.RESET),
    "body cut by a close": raw(OK_HEAD + b"half", then=Then.CLOSE),
    "body that stalls": raw(OK_HEAD + b"half", then=Then.HANG),
    "slow loris in the body": drip(b"y" * 1000, gap_seconds=0.01, prefix=OK_HEAD),
    "body of more than we read": endless(OK_HEAD, b"y" * 8192),
    "endless body": endless(b"HTTP/1.1 200 OK\r\n\r\n", b"y" * 8192),
    "endless chunks": endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\ny\r\n" * 100),
    "endless chunk extension": endless(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"y" * 8192
    ),
    "endless trailers": endless(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n" * 100
    ),
    "endless answers": endless(b"", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" * 100),
    "bad chunk": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", then=Then.HANG),
    "a body that claims to be compressed": raw(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 8\r\nConnection: close\r\n\r\nnot gzip",
        then=Then.HANG,
    ),
}


@pytest.mark.parametrize("behaviour", DELIVERED.values(), ids=DELIVERED.keys())
async def test_a_whole_head_of_200_is_an_answer_whatever_its_body_does(receiver, sender, behaviour):
    receiver.script("/bad", behaviour)

    with trio.fail_after(DEADLINE + SLACK):
        result = await sender.post("/bad", deadline_seconds=DEADLINE)
        await receiver.wait_open(0)

    assert isinstance(result.outcome, Answer)
    assert result.outcome.status == 200
    assert len(result.outcome.excerpt) <= 1024
    assert result.phases.answered is not None
    assert sender.transport.idle_connections == 0


async def test_a_body_that_stalls_takes_no_more_than_a_second_of_a_long_deadline(receiver, sender):
    receiver.script("/bad", raw(OK_HEAD, then=Then.HANG))

    result = await sender.post("/bad", deadline_seconds=20)

    assert isinstance(result.outcome, Answer)
    assert 0.9 < result.elapsed_seconds < 1 + SLACK


@pytest.mark.parametrize(
    "name", ["endless head", "endless interim answers", "endless body", "endless chunks"]
)
async def test_endless_answers_are_cut_within_bounded_memory(receiver, sender, name):
    behaviour = DELIVERED[name] if name in DELIVERED else NO_ANSWER[name][0]
    receiver.script("/bad", *[behaviour] * 20)
    await sender.post("/warm-up")

    tracemalloc.start()
    try:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(
                    lambda key: sender.post("/bad", key=key, deadline_seconds=2), f"key {number}"
                )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    # Both sides of 20 connections are in it: the receiver's buffers too.
    assert peak < 20 * MEMORY_MAX / 4


async def test_a_redirect_is_an_answer_and_is_not_followed(receiver, sender):
    receiver.script("/from", redirect(receiver.url("/to")))

    result = await sender.post("/from")

    assert result.outcome.status == 307
    assert [request.path for request in receiver.requests] == ["/from"]


async def test_nothing_is_decompressed_and_no_compression_is_asked_for(receiver, sender):
    receiver.script("/", answer(200, [("Content-Encoding", "gzip")], b"not gzip"))

    result = await sender.post("/")

    assert result.outcome.excerpt == "not gzip"
    assert receiver.requests[0].header("accept-encoding") == "identity"


async def test_an_early_refusal_of_a_large_body_is_the_answer(receiver, sender):
    """The receiver stops reading: who only writes would wait until the deadline, and miss what was said."""
    receiver.script("/", early(answer(413, then=Then.HANG)))

    result = await sender.post("/", b"x" * 30_000_000, deadline_seconds=5)

    assert result.outcome == Answer(status=413, excerpt="ok")
    assert result.elapsed_seconds < SLACK
    assert result.phases.sent is None
    assert sender.transport.idle_connections == 0


async def test_an_early_refusal_with_a_close_is_the_answer(receiver, sender):
    receiver.script("/", early(answer(413, then=Then.CLOSE)))

    result = await sender.post("/", b"x" * 30_000_000, deadline_seconds=5)

    assert isinstance(result.outcome, Answer | AttemptFailure)
    if isinstance(result.outcome, Answer):
        assert result.outcome.status == 413
    else:  # The reset may overtake the answer on its way: then nobody can know it.
        assert result.outcome.kind is FailureKind.RESET


async def test_receivers_that_hang_delay_nobody_else(receiver, sender):
    receiver.script("/hang", *[hang()] * 50)

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(
                lambda key: sender.post("/hang", key=key, deadline_seconds=30), f"hang {number}"
            )
        await receiver.wait_for(50)
        elapsed = [(await sender.post("/fine", key="fine")).elapsed_seconds for _ in range(100)]
        nursery.cancel_scope.cancel()

    assert sorted(elapsed)[50] < 0.05
