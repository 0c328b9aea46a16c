"""Lines to a pipe whose reader may hang or be gone."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from pggit_reactor.observability.line_writer import STALL_SECONDS_MAX, LineWriter


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read_end, write_end = os.pipe()
    yield read_end, write_end
    for descriptor in (read_end, write_end):
        with suppress(OSError):  # a test may have closed it
            os.close(descriptor)


def drain(descriptor: int) -> bytes:
    os.set_blocking(descriptor, False)
    octets = b""
    try:
        while piece := os.read(descriptor, 65_536):
            octets += piece
    except BlockingIOError:
        pass
    return octets


def stall(writer: LineWriter) -> int:
    """Write until a line is dropped; return how many were written."""
    written = 0
    while not writer.dropped:
        writer.write_line("x" * 1000)
        written += 1
    return written - 1


def test_a_line_is_written_at_once_and_whole(pipe: tuple[int, int]) -> None:
    LineWriter(pipe[1]).write_line("größer")

    assert drain(pipe[0]) == "größer\n".encode()


def test_what_utf_8_cannot_hold_is_written_as_an_escape(pipe: tuple[int, int]) -> None:
    LineWriter(pipe[1]).write_line("a\udcffb")

    assert drain(pipe[0]) == b"a\\udcffb\n"


def test_a_reader_that_hangs_stalls_the_writer_once_and_briefly(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1])
    started = time.monotonic()
    stall(writer)
    stalled = time.monotonic() - started
    for _ in range(1000):
        writer.write_line("lost")

    assert stalled >= STALL_SECONDS_MAX * 0.9
    assert time.monotonic() - started < STALL_SECONDS_MAX + 5
    assert writer.dropped == 1001


def test_a_reader_that_comes_back_gets_whole_lines_again(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1])
    written = stall(writer)
    before = drain(pipe[0])
    writer.write_line("back")

    assert before.count(b"\n") == written
    assert drain(pipe[0]) == b"back\n"
    assert writer.dropped == 0


def test_a_long_line_that_was_cut_off_does_not_spoil_the_next(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1])
    writer.write_line("y" * 200_000)
    assert writer.dropped == 1
    drain(pipe[0])
    writer.write_line("whole")

    assert drain(pipe[0]) == b"\nwhole\n"


def test_a_reader_that_is_gone_raises_nothing(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1])
    os.close(pipe[0])
    writer.write_line("nobody hears")

    assert writer.dropped == 1


def test_lines_of_several_threads_do_not_mix(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1])
    threads = [
        threading.Thread(target=lambda letter=letter: [writer.write_line(letter * 200) for _ in range(50)])
        for letter in "abcd"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    lines = drain(pipe[0]).decode().splitlines()
    assert len(lines) == 200
    assert all(len(set(line)) == 1 for line in lines)
