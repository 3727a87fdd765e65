"""How many bytes may wait in memory, whatever arrives."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class ByteBudget:
    """Makes downloads wait while all of them together hold too many bytes.

    Where no finished one is left whose release could be waited for, one at a time may go on over
    the limit: somebody always gets done, and at most one body's size is held beyond the limit.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._finished = 0
        self._leader: int | None = None
        self._released = asyncio.Event()

    def took(self, amount: int) -> bool:
        """Returns whether there is room for so many more bytes at once: then they are noted."""
        if self._held + amount > self._limit:
            return False
        self._held += amount
        return True

    async def grow(self, amount: int, holder: int) -> None:
        """Takes note of more bytes of a download, as soon as there is room for them."""
        while self._held + amount > self._limit and self._leader != holder:
            if self._leader is None and not self._finished:
                self._leader = holder
                break
            self._released.clear()
            await self._released.wait()
        self._held += amount

    def finish(self, amount: int, holder: int) -> None:
        """Takes note that a download is whole; its bytes are held until `release`."""
        self._finished += amount
        self._step_down(holder)

    def release(self, amount: int) -> None:
        """Takes note that the bytes of a whole download are gone."""
        self._finished -= amount
        self._held -= amount
        self._released.set()

    def abandon(self, amount: int, holder: int) -> None:
        """Takes note that a download has failed and its bytes are gone."""
        self._held -= amount
        self._step_down(holder)

    def _step_down(self, holder: int) -> None:
        if self._leader == holder:
            self._leader = None
        self._released.set()


@contextmanager
def paused(deadline: asyncio.Timeout) -> Iterator[None]:
    """Lets no time of an image pass: what is waited for meanwhile is ours, not its host's."""
    loop = asyncio.get_running_loop()
    left = (deadline.when() or 0.0) - loop.time()
    deadline.reschedule(None)
    try:
        yield
    finally:
        deadline.reschedule(loop.time() + left)
