"""When rows flow: what fetching takes a row, apart from what its beginning and its end take.

At first nothing comes back: decoders load their libraries, hosts are asked for their rules. At last
few are at work: the rows of slow hosts. Both are there once, however many rows lie between, so that
a small run would tell too much of a large one. So the rows between are counted apart: those after
the first and before the last eighth of all, or as many rows as there are downloads at once.
"""

import time
from dataclasses import dataclass

from pipeline.dataset.processor_time import cpu_seconds

ROWS_OF_A_SAMPLE = 8
SAMPLES_OF_THE_DOWNLOADS = 32
"""As many rows as there are downloads at once have no more samples: each asks for every process."""

MAX_SAMPLES = 128
"""Moments that are remembered; of more, every second is forgotten."""

MOST_LEFT_OUT = 1000
"""Rows that are left out at either end, at most, but for four times the downloads at once."""


@dataclass(frozen=True, slots=True)
class FlowTime:
    """What the rows in the middle took."""

    rows: int = 0
    seconds: float = 0.0
    """By the clock."""
    cpu_seconds: float = 0.0
    """Of all processes."""


@dataclass(frozen=True, slots=True)
class _Moment:
    """How much was done and had been taken at a moment."""

    rows: int
    seconds: float
    cpu_seconds: float

    @classmethod
    def now(cls, rows: int) -> "_Moment":
        return cls(rows, time.perf_counter(), cpu_seconds())


class Flow:
    """Counts rows that are done."""

    def __init__(self, connections: int) -> None:
        """Begins.

        Args:
            connections: downloads at once.
        """
        self._connections = connections
        self._rows = 0
        self._rows_of_a_sample = max(ROWS_OF_A_SAMPLE, connections // SAMPLES_OF_THE_DOWNLOADS)
        self._moments = [_Moment.now(0)]

    def count(self) -> None:
        """Takes note that one more row is done."""
        self._rows += 1
        if self._rows % self._rows_of_a_sample:
            return
        self._moments.append(_Moment.now(self._rows))
        if len(self._moments) > MAX_SAMPLES:
            self._moments = self._moments[::2]
            self._rows_of_a_sample *= 2

    def time(self) -> FlowTime:
        """Returns what the rows in the middle took if all are done now.

        Of no rows where fewer than two came for each download at once: all were asked at the
        beginning, and nothing flowed.
        """
        if self._rows < 2 * self._connections:
            return FlowTime()
        most = max(4 * self._connections, MOST_LEFT_OUT)
        apart = min(max(self._rows // 8, self._connections), self._rows // 4, most)
        first = min(self._moments, key=lambda one: abs(one.rows - apart))
        last = min(self._moments, key=lambda one: abs(one.rows - self._rows + apart))
        return FlowTime(
            last.rows - first.rows,
            last.seconds - first.seconds,
            last.cpu_seconds - first.cpu_seconds,
        )
