"""Slots at hosts: so many requests at once, and no more often than a host's rate allows."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from pipeline.config import FetchConfig
from pipeline.fetch.hosts.memory import MAX_HOSTS, HostMemory
from pipeline.fetch.hosts.robots import MAX_CRAWL_DELAY_SECONDS
from schemas.errors import RejectReason, SampleRejected


@dataclass(slots=True)
class _HostSlots:
    active: int = 0
    next_at: float = 0.0
    """When the next request may begin, on the monotonic clock."""
    is_paced: bool = False
    """Whether it was asked at a pace before."""
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    """Redirected requests that wait for one of those at work to end."""


class HostSlots:
    """Counts the requests at work at each host, first ones and redirected ones alike."""

    def __init__(self, memory: HostMemory, config: FetchConfig) -> None:
        self._memory, self._share = memory, memory.share
        self._limit = memory.share.connections
        self._timeout_seconds = config.timeout_seconds
        self._has_rules = config.respects_robots or config.respects_tdm
        self._hosts: dict[str, _HostSlots] = {}
        self._most = MAX_HOSTS
        """Hosts that are counted before those that nobody asks are forgotten."""
        self.on_free: Callable[[str], None] | None = None
        """Told of a host that has room again."""

    def is_full(self, origin: str) -> bool:
        """Returns whether a host is asked as much at once as may be.

        A host whose rules are not known gets one request, which asks for them: they may slow it.
        """
        is_known = not self._has_rules or self._memory.has_rules(origin)
        return self._host(origin).active >= (self._limit if is_known else 1)

    def start_at(self, origin: str) -> float:
        """Returns when a host may be asked again, on the monotonic clock."""
        paused_until = self._memory.host(origin).paused_until
        if paused_until - time.monotonic() > self._timeout_seconds:
            paused_until = 0.0  # too long to wait for: what asks it is rejected right away
        return max(self._host(origin).next_at, paused_until)

    def slowness(self, origin: str) -> int:
        """Returns the whole seconds that a request at a host takes, as far as is known."""
        return int(self._memory.host(origin).busy_seconds)

    def was_asked(self, origin: str) -> bool:
        """Returns whether a host has answered, or failed to, as far as is known."""
        return self._memory.host(origin).busy_seconds > 0.0

    def begin(self, origin: str) -> "Slot":
        """Returns a slot that is taken now; the caller has seen that there is room."""
        self._host(origin).active += 1
        self._reserve(origin)
        return Slot(self, origin)

    async def wait(
        self, origin: str, patience_seconds: float, deadline: asyncio.Timeout | None = None
    ) -> "Slot":
        """Returns a slot at a host once its request may begin.

        Args:
            patience_seconds: for other requests to end, as long for each worker that shares the
                host. A wait for the host's rate is bounded by `wait_for_rate` alone.
            deadline: of the caller, moved by the wait for the rate and for other workers.

        Raises:
            SampleRejected: RATE_LIMITED, if that takes too long.
        """
        host = self._host(origin)
        if host.active < self._limit:
            host.active += 1
        else:
            await self._wait_for_room(host, origin, patience_seconds, deadline)
        slot = Slot(self, origin)
        try:
            await self.wait_for_rate(origin, deadline)
        except BaseException:  # cancelled, too: what is held is given back
            slot.end()
            raise
        return slot

    async def _wait_for_room(
        self,
        host: _HostSlots,
        origin: str,
        patience_seconds: float,
        deadline: asyncio.Timeout | None,
    ) -> None:
        room = asyncio.get_running_loop().create_future()
        host.waiting.append(room)
        patience_seconds = max(patience_seconds, 0.0)
        try:
            async with self._waiting_for_others(patience_seconds, deadline) as longest:
                await asyncio.wait({room}, timeout=longest)
            if not room.done():
                raise no_slot(origin)
        except BaseException:  # cancelled, too: what is held is given back
            if room.done():
                self.end(origin)
            else:
                host.waiting.remove(room)
            raise

    @asynccontextmanager
    async def _waiting_for_others(
        self, patience_seconds: float, deadline: asyncio.Timeout | None
    ) -> AsyncIterator[float]:
        """Gives how long a wait may take of which other workers have their part.

        That part does not count against an image's time: the deadline is moved by it.
        """
        workers, began = self._share.workers, time.monotonic()
        due = deadline.when() if deadline is not None else None
        if deadline is None or due is None or workers == 1:
            yield patience_seconds * workers
            return
        deadline.reschedule(due + patience_seconds * (workers - 1))
        try:
            yield patience_seconds * workers
        finally:
            if not deadline.expired():
                deadline.reschedule(due + (time.monotonic() - began) * (1 - 1 / workers))

    async def wait_for_rate(self, origin: str, deadline: asyncio.Timeout | None = None) -> None:
        """Waits until one more request of a slot may begin.

        The wait is ours, not the host's: it does not count against an image's time, or no redirect
        at a host with a crawl delay above that time could ever be followed.

        Args:
            deadline: of the caller, moved by the wait.

        Raises:
            SampleRejected: RATE_LIMITED, if so many wait already that it takes more than
                `MAX_CRAWL_DELAY_SECONDS` for each worker that asks the host, or the time between
                two requests if that is longer.
        """
        wait = self.start_at(origin) - time.monotonic()
        between = self._memory.host(origin).seconds_between_requests
        if wait > max(between, self._share.seconds_between(MAX_CRAWL_DELAY_SECONDS)):
            raise no_slot(origin)
        self._reserve(origin)
        if wait > 0:
            if deadline is not None:
                deadline.reschedule((deadline.when() or 0.0) + wait)
            await asyncio.sleep(wait)

    def end(self, origin: str, busy_seconds: float = 0.0) -> None:
        """Takes note that a slot is over; who waits for room gets it first.

        Args:
            busy_seconds: for which the host was asked; in its share of them it is then left alone.
        """
        host = self._host(origin)
        if busy_seconds:
            self._memory.host(origin).took(busy_seconds)
        rest_seconds = busy_seconds * self._share.rest_ratio
        if rest_seconds:
            host.next_at = max(host.next_at, time.monotonic() + rest_seconds)
        while host.waiting:
            room = host.waiting.popleft()
            if not room.done():
                room.set_result(None)
                return
        host.active -= 1
        self.offer(origin)

    def offer(self, origin: str) -> None:
        """Lets rows of a host that wait in a queue begin, as far as they may."""
        if self.on_free is not None:
            self.on_free(origin)

    def _reserve(self, origin: str) -> None:
        start = max(self.start_at(origin), time.monotonic())
        host, between = self._host(origin), self._memory.host(origin).seconds_between_requests
        if between and not host.is_paced:
            host.is_paced = True
            between *= self._share.phase()
        host.next_at = start + between

    def _host(self, origin: str) -> _HostSlots:
        host = self._hosts.get(origin)
        if host is None:
            if len(self._hosts) >= self._most:
                self._forget_idle()
            wait = self._share.first_wait()
            host = _HostSlots(next_at=time.monotonic() + wait if wait else 0.0)
            self._hosts[origin] = host
        return host

    def _forget_idle(self) -> None:
        """Forgets the hosts that nobody asks and that anybody may ask at once."""
        now = time.monotonic()
        self._hosts = {
            origin: host
            for origin, host in self._hosts.items()
            if host.active or host.waiting or host.next_at > now
        }
        self._most = max(MAX_HOSTS, 2 * len(self._hosts))


def no_slot(origin: str) -> SampleRejected:
    """Returns the rejection of an image for which a host had no room, or too many wait for it."""
    detail = f"no free slot at {origin} within the image's time"
    return SampleRejected(RejectReason.RATE_LIMITED, detail)


class Slot:
    """One request at work at a host; redirects move it to another. End it when done."""

    def __init__(self, slots: HostSlots, origin: str) -> None:
        self._slots = slots
        self._origin: str | None = origin
        self._began, self._busy_seconds = time.monotonic(), 0.0

    async def move(
        self, origin: str, patience_seconds: float, deadline: asyncio.Timeout | None = None
    ) -> None:
        """Waits until the next request may begin, at this host or another.

        Args:
            patience_seconds: for other requests to end, as long for each worker that shares the
                host.
            deadline: of the caller, moved by the wait for the host's rate and for other workers.

        Raises:
            SampleRejected: RATE_LIMITED, if that takes too long.
        """
        if origin == self._origin:
            self._busy_seconds += time.monotonic() - self._began
            try:
                await self._slots.wait_for_rate(origin, deadline)
            finally:
                self._began = time.monotonic()
            return
        self.end()  # nobody waits for a host while keeping another: no ring of waiting can form
        await self._slots.wait(origin, patience_seconds, deadline)
        self._origin = origin
        self._began, self._busy_seconds = time.monotonic(), 0.0

    def end(self) -> None:
        """Takes note that the request is over."""
        origin, self._origin = self._origin, None
        if origin is not None:
            self._slots.end(origin, self._busy_seconds + time.monotonic() - self._began)
