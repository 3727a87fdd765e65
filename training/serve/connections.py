"""Connections that say nothing, or too slowly, do not keep others out."""

import asyncio
import functools
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 15.0
"""In which the head of a request must have arrived."""


class Doorkeeper:
    """Knows all connections, those that wait for the head of a request in their order."""

    def __init__(self, most: int, seconds: float = HEAD_SECONDS) -> None:
        self._most, self.seconds = most, seconds
        self._all: dict[PatientProtocol, None] = {}

    def enter(self, connection: "PatientProtocol") -> None:
        """Lets a connection in; where there are too many, the longest silent one goes."""
        self._all[connection] = None
        if len(self._all) > self._most:
            silent = next((one for one in self._all if one.is_silent), connection)
            self._all.pop(silent)
            silent.transport.abort()

    def leave(self, connection: "PatientProtocol") -> None:
        """Takes note that a connection is closed."""
        self._all.pop(connection, None)

    def protocol(self) -> type[asyncio.Protocol]:
        """Returns what uvicorn makes each connection with."""
        return cast("type[asyncio.Protocol]", functools.partial(PatientProtocol, doorkeeper=self))


class PatientProtocol(H11Protocol):
    """A connection that has a while for each head of a request."""

    def __init__(self, *arguments: Any, doorkeeper: Doorkeeper, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._doorkeeper = doorkeeper
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_silent(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Lets it in."""
        super().connection_made(transport)
        self._doorkeeper.enter(self)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets it."""
        if self._timer is not None:
            self._timer.cancel()
        self._doorkeeper.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Reads on; a head that does not end ends the connection."""
        super().data_received(data)
        if self.is_silent and self._timer is None:
            self._wait()

    def _wait(self) -> None:
        self._timer = self.loop.call_later(self._doorkeeper.seconds, self._end)

    def _end(self) -> None:
        self._timer = None
        if self.is_silent and not self.transport.is_closing():
            self.transport.close()
