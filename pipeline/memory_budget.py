"""How many bytes may wait in memory, whatever arrives."""

import asyncio


class ByteBudget:
    """Makes those who hold downloaded bytes wait while all of them hold too many.

    One of them at a time may go on over the limit, so that somebody always gets done.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._leader: int | None = None
        self._released = asyncio.Event()

    async def grow(self, amount: int, holder: int) -> None:
        """Takes note of more bytes, as soon as there is room for them."""
        while self._held + amount > self._limit and self._leader != holder:
            if self._leader is None:
                self._leader = holder
                break
            self._released.clear()
            await self._released.wait()
        self._held += amount

    def release(self, amount: int) -> None:
        """Takes note that bytes are gone."""
        self._held -= amount
        self._released.set()

    def finish(self, holder: int) -> None:
        """Takes note that a holder grows no more."""
        if self._leader == holder:
            self._leader = None
            self._released.set()
