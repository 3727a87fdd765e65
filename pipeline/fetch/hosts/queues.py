"""Rows that wait for their host: who works takes the next that may be asked."""

import asyncio
import heapq
import itertools
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from pipeline.fetch.hosts.slots import HostSlots, Slot

Row = TypeVar("Row")

ROWS_PER_SLOW_ROW = 4
"""Of so many rows that are handed out, one is of a host that takes long, if one may be asked."""


class _Place(NamedTuple):
    """A host among those that may be asked, in the order in which they are."""

    is_slow: bool
    turn: int
    """Of its first row; 0 for all that take long."""
    was_asked: bool
    less_work: int
    """Seconds of what waits for it, negative."""
    tick: int
    """When it was listed."""
    origin: str


@dataclass(slots=True)
class _Queue(Generic[Row]):
    """The rows of one host that wait, each with its turn."""

    rows: deque[tuple[int, Row]] = field(default_factory=deque)
    place: _Place | None = None
    """Where its host is listed; other places that it has are of before."""


class HostQueues(Generic[Row]):
    """Hands out rows so that no host gets more than its share and no worker waits for a host.

    What was added first goes first: later rows fill what that leaves free. Of that, hosts go first
    of which nothing is known, then those with most rows: a host takes only so many at once. But of
    every few rows one is of a host that takes long, if any waits, whenever it was added: of the one
    that will be busy longest, or the end would be a wait for those alone.

    Source: R. L. Graham, Bounds on Multiprocessing Timing Anomalies, SIAM J. Appl. Math., 1969
    (longest processing time first).
    """

    def __init__(
        self, rows: Iterable[tuple[str, Row]], slots: HostSlots, *, is_open: bool = False
    ) -> None:
        """Takes hosts with their rows.

        Args:
            is_open: whether more may be added, until `close`.
        """
        self._slots, self._is_open = slots, is_open
        self._queues: dict[str, _Queue[Row]] = {}
        self._ready: list[_Place] = []
        """Hosts that may be asked."""
        self._slow: list[_Place] = []
        """Those of them that take long."""
        self._later: list[tuple[float, _Place]] = []
        """Those that may be asked from a moment on."""
        self._ticks = itertools.count()
        self._turns = itertools.count()
        self._waiting = 0
        self._takers: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        slots.on_free = self._freed
        self.add(rows)

    def add(self, rows: Iterable[tuple[str, Row]]) -> None:
        """Adds rows behind those that wait already."""
        turn, origins = next(self._turns), set()
        for origin, row in rows:
            self._queues.setdefault(origin, _Queue()).rows.append((turn, row))
            self._waiting += 1
            origins.add(origin)
        for origin in sorted(origins):
            self._list(origin)
        self._wake()

    def close(self) -> None:
        """Takes note that no more will be added: who takes gets None at the end."""
        self._is_open = False
        self._wake()

    async def take(self) -> tuple[Slot | None, Row, bool] | None:
        """Returns a slot at a host, the row to ask of it and whether that is its last.

        None at the end; no slot for a row that asks no host.
        """
        while self._waiting or self._is_open:
            handed_out = self._next()
            if handed_out is not None:
                self._wake()
                return handed_out
            await self._wait()
        self._wake()
        return None

    async def _wait(self) -> None:
        """Waits until there may be something to take."""
        taker = asyncio.get_running_loop().create_future()
        self._takers.append(taker)
        self._set_timer()
        try:
            await taker
        except asyncio.CancelledError:
            if taker.done() and not taker.cancelled():
                self._wake()  # it was woken and cannot go: another can
            raise

    def _wake(self) -> None:
        """Lets one who waits look again, if there is anything to see: it wakes the next one."""
        if self._is_open and not self._ready and not self._slow and not self._is_due():
            return
        while self._takers:
            taker = self._takers.popleft()
            if not taker.done():
                taker.set_result(None)
                return

    def _is_due(self) -> bool:
        return bool(self._later) and self._later[0][0] <= time.monotonic()

    def _set_timer(self) -> None:
        """Has one who waits woken when the next host may be asked."""
        if not self._later:
            return
        loop, at = asyncio.get_running_loop(), self._later[0][0]
        wait = max(0.0, at - time.monotonic())
        if self._timer is not None:
            if self._timer.when() <= loop.time() + wait:
                return
            self._timer.cancel()
        self._timer = loop.call_later(wait, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._is_due() or self._ready or self._slow:
            self._wake()
        elif self._takers:
            self._set_timer()

    def _next(self) -> tuple[Slot | None, Row, bool] | None:
        while self._is_due():
            self._push(heapq.heappop(self._later)[1])
        while self._ready or self._slow:
            is_turn_of_slow = self._waiting % ROWS_PER_SLOW_ROW == 0
            first, second = self._ready, self._slow
            if is_turn_of_slow:
                first, second = second, first
            place = heapq.heappop(first or second)
            if not self._is_listed(place):
                continue
            handed_out = self._hand_out(place.origin)
            if handed_out is not None:
                return handed_out
        return None

    def _is_listed(self, place: _Place) -> bool:
        """Returns whether a host is still listed at this place."""
        queue = self._queues.get(place.origin)
        return queue is not None and queue.place is place

    def _push(self, place: _Place) -> None:
        """Lists a host as one that may be asked."""
        heapq.heappush(self._slow if place.is_slow else self._ready, place)

    def _hand_out(self, origin: str) -> tuple[Slot | None, Row, bool] | None:
        queue = self._queues[origin]
        queue.place = None
        if origin and (
            self._slots.is_full(origin) or self._slots.start_at(origin) > time.monotonic()
        ):
            self._list(origin)  # a redirected request came first
            return None
        _, row = queue.rows.popleft()
        self._waiting -= 1
        slot = self._slots.begin(origin) if origin else None
        if queue.rows:
            self._list(origin)
        else:
            del self._queues[origin]
        return slot, row, not queue.rows

    def _freed(self, origin: str) -> None:
        if origin in self._queues:
            self._list(origin)
            self._wake()

    def _list(self, origin: str) -> None:
        """Puts the host where it will be taken from as soon as it may be asked."""
        queue = self._queues[origin]
        is_full = bool(origin) and self._slots.is_full(origin)
        if not queue.rows or is_full:
            return
        slowness = self._slots.slowness(origin) if origin else 0
        # One that turns out to take long is no longer behind those that do not.
        if queue.place is not None and (queue.place.is_slow or not slowness):
            return
        was_asked = bool(origin) and self._slots.was_asked(origin)
        turn = 0 if slowness else queue.rows[0][0]
        work = len(queue.rows) * max(1, slowness)
        place = _Place(slowness > 0, turn, was_asked, -work, next(self._ticks), origin)
        queue.place = place
        start_at = self._slots.start_at(origin) if origin else 0.0
        if start_at > time.monotonic():
            heapq.heappush(self._later, (start_at, place))
            if self._takers:
                self._set_timer()
        else:
            self._push(place)
