"""Times of rows, in memory that the producer, the receiver and the bench share.

A plain file mapped by all three: a write is one store of eight octets, so that measuring costs the measured
nothing, and no message has to be parsed afterwards. Times are of CLOCK_MONOTONIC, which is one clock for all
processes of a machine.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Final, Self

ROWS_MAX: Final = 1 << 20
"""Rows that can be timed in one run; numbers start at 1, and number 0 is for rows that nobody times."""

_OCTETS: Final = 8
_HEADER_OCTETS: Final = 4 * _OCTETS


class _Outage:
    """Places in `Board.counters`: whether the receiver is away, and requests that found it so."""

    is_on: Final = 2
    tries: Final = 3


OUTAGE: Final = _Outage()


class Board:
    """When each row was committed, and when its request was whole; 0 for not yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        view = memoryview(self._map)
        end = _HEADER_OCTETS + ROWS_MAX * _OCTETS
        self.counters = view[:_HEADER_OCTETS].cast("q")
        """All requests that the receiver read; those of them that repeat a row; and `OUTAGE`."""
        self.committed = view[_HEADER_OCTETS:end].cast("d")
        self.arrived = view[end : end + ROWS_MAX * _OCTETS].cast("d")

    @classmethod
    def create(cls, path: Path) -> Self:
        """Make the file, all zero, and map it."""
        with path.open("wb") as file:
            file.truncate(_HEADER_OCTETS + 2 * ROWS_MAX * _OCTETS)
        return cls(path)

    def latencies(self, rows: range) -> list[float]:
        """Return the seconds from COMMIT to the whole request of each of *rows*, all of which have arrived."""
        assert self.missing(rows) == 0
        return [self.arrived[row] - self.committed[row] for row in rows]

    def missing(self, rows: range) -> int:
        """Count those of *rows* that have not arrived."""
        return sum(1 for row in rows if self.arrived[row] == 0.0)
