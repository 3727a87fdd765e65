"""How a process learns that another one died, or that its host is lost.

Each process holds a connection to the first. The kernels at both ends look after it (TCP
keepalive), so that a process which is slow, or stopped, is never taken for dead. One that died, or
whose host does not answer any more, is noticed although all others hang in a collective, where
gloo and NCCL wait for hours. The first tells the others who it was.

    process 0  <-- a connection each -->  process 1, 2, …
       "failed", "lost": who, and why      "bye": through, all is well
"""

import json
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from schemas.command_line import print_error
from schemas.errors import ConfigError, PeerLost
from schemas.terminal import Console
from training.engine.launch import is_peer_lost
from training.engine.place import Place, address_of, name_interface

STATUS_FAILED = 1
SECONDS_TO_HEAR = 5.0
"""Time that this process has to notice the loss of another in its own collective."""
PROBES = 3
"""That a host leaves unanswered before it counts as lost."""
HELLO_SECONDS = 60.0
"""For the rest of a connection's first line, of which the beginning has come."""
SECONDS_TO_FOLLOW = 60.0
"""Time that this process has to end by itself when another has failed: often of the same."""
MOST_BYTES = 1 << 16
"""Of a message."""
MOST_WORDS = 2000
"""Characters of another process's error that are passed on."""


@dataclass(slots=True)
class _Peer:
    """A connection to another process, and what came by it so far."""

    place: Place
    connection: socket.socket
    waiting: bytes = b""
    has_left: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends a message, if the other end still is there to take it."""
        with self.lock, suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]]:
        """Returns the messages that have come.

        Raises:
            OSError: once the connection is at its end; TimeoutError if the other host is silent.
        """
        found = self.connection.recv(MOST_BYTES)
        if not found:
            raise ConnectionError("it hung up")
        *lines, self.waiting = (self.waiting + found).split(b"\n")
        return [json.loads(line) for line in lines]

    def readline(self) -> bytes:
        """Returns the first line that comes; what is behind it waits."""
        while b"\n" not in self.waiting and len(self.waiting) < MOST_BYTES:
            found = self.connection.recv(MOST_BYTES)
            if not found:
                raise ConnectionError("it hung up")
            self.waiting += found
        line, _, self.waiting = self.waiting.partition(b"\n")
        return line


_writing = threading.Lock()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Lets this process write something whole, though others are lost meanwhile."""
    with _writing:
        yield


def watch_others(
    places: Sequence[Place],
    rank: int,
    server: socket.socket | None,
    told: Sequence[Any],
    deadline: float,
    lost_after_seconds: float,
) -> "Watch":
    """Returns the watch, once all processes are connected.

    Args:
        server: of the first process.
        told: address, port and password of it.
        deadline: until when they must be, on this process's monotonic clock.

    Raises:
        ConfigError: if they are not.
    """
    address, port, password = told
    if server is not None:
        peers = _accepted(server, places, password, deadline)
        ways = [peer.connection for peer in peers if peer.place.node > 0]
        own = address_of(ways[0]) if ways else ""
        for peer in peers:
            peer.send({"kind": "begin", "address": own})
    else:
        peer, told_own = _connected(places, rank, address, port, password, deadline)
        peers, own = [peer], address_of(peer.connection) if places[rank].node > 0 else told_own
    name_interface(own)
    for peer in peers:
        _keep_alive(peer.connection, lost_after_seconds)
    return Watch(places[rank], peers, lost_after_seconds)


def _accepted(
    server: socket.socket, places: Sequence[Place], password: str, deadline: float
) -> list[_Peer]:
    """Returns the connections of all other processes.

    None holds up the others: on a busy machine seconds go by between a connection and its first
    word, and strangers may never say one.
    """
    found: dict[int, _Peer] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        while len(found) < len(places) - 1:
            events = selector.select(max(0.0, deadline - time.monotonic()))
            if not events:
                missing = next(place for place in places[1:] if place.rank not in found)
                raise ConfigError(
                    f"{missing} did not connect to {places[0]} in time: look at what its host "
                    "says, and whether a firewall lets hosts reach each other at all ports"
                )
            for key, _ in events:
                if key.data is None:
                    new = _Peer(places[0], server.accept()[0])
                    selector.register(new.connection, selectors.EVENT_READ, new)
                    continue
                selector.unregister(key.fileobj)
                if _is_ours(key.data, places, password):
                    found[key.data.place.rank] = key.data
                else:
                    key.data.connection.close()
        for key in list(selector.get_map().values()):
            if key.data is not None:
                key.data.connection.close()
    return list(found.values())


def _is_ours(peer: _Peer, places: Sequence[Place], password: str) -> bool:
    """Returns whether a connection that has spoken is of this run, and notes of which process."""
    try:
        peer.connection.settimeout(HELLO_SECONDS)
        said = json.loads(peer.readline())
        peer.place = places[int(said["rank"])]
        return secrets.compare_digest(str(said["password"]), password)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return False


def _connected(
    places: Sequence[Place], rank: int, address: str, port: int, password: str, deadline: float
) -> tuple[_Peer, str]:
    """Returns the connection to the first process, and its host's address among the hosts."""
    try:
        connection = socket.create_connection((address, port), max(1, deadline - time.monotonic()))
        peer = _Peer(places[0], connection)
        peer.send({"password": password, "rank": rank})
        connection.settimeout(max(1.0, deadline - time.monotonic()))
        own = str(json.loads(peer.readline())["address"])
    except OSError as error:
        raise ConfigError(
            f"{places[rank]} cannot reach {places[0]} at {address}:{port} ({error}): hosts must "
            "reach each other at all ports; is there a firewall between them?"
        ) from error
    return peer, own


def _keep_alive(connection: socket.socket, seconds: float) -> None:
    """Lets the kernel find out within so many seconds that the other host does not answer."""
    connection.settimeout(None)
    every = max(1, round(seconds / (PROBES + 1)))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, every)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, every)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)


class Watch:
    """Hears of the end of other processes, from a thread of its own, for the length of a block."""

    def __init__(self, place: Place, peers: Sequence[_Peer], lost_after_seconds: float) -> None:
        self._place, self._peers = place, peers
        self._lost_after_seconds = lost_after_seconds
        self._is_over = False
        self._has_fallen, self._is_taken = threading.Event(), threading.Event()
        self._claim = threading.Lock()
        self._words, self._speaks = "", True
        self._thread = threading.Thread(target=self._listen, name="watch", daemon=True)

    def __enter__(self) -> "Watch":
        """Begins to listen."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tells the others how this process ends.

        Raises:
            PeerLost: if it ends since another one is gone; only the first left on a host does.
        """
        if isinstance(error, Exception) and is_peer_lost(error):
            self._name_the_lost(error)
        self._is_taken.set()
        if not self._claim.acquire(blocking=False):
            self._thread.join()  # which ends this process
        if error is None or isinstance(error, SystemExit):
            self._send({"kind": "bye", "rank": self._place.rank})
        else:
            words = f"{type(error).__name__}: {error}"[:MOST_WORDS]
            self._send({"kind": "failed", "rank": self._place.rank, "why": words})
        self._close()

    def _name_the_lost(self, error: Exception) -> None:
        """Waits a while for the first process to say who was lost, and says so."""
        if not self._has_fallen.wait(SECONDS_TO_FOLLOW):
            return
        self._is_taken.set()
        if not self._claim.acquire(blocking=False):
            self._thread.join()  # which ends this process
        self._close()
        if self._speaks:
            raise PeerLost(self._words) from error
        raise SystemExit(STATUS_FAILED) from error

    def _close(self) -> None:
        self._is_over = True
        for peer in self._peers:
            with suppress(OSError):
                peer.connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for peer in self._peers:
            peer.connection.close()

    def _send(self, message: Mapping[str, Any]) -> None:
        for peer in self._peers:
            if not peer.has_left:
                peer.send(message)

    def _listen(self) -> None:
        """Hears what comes, until this process is through or another has fallen."""
        with selectors.DefaultSelector() as selector:
            for peer in self._peers:
                selector.register(peer.connection, selectors.EVENT_READ, peer)
            while selector.get_map() and not self._is_over:
                for key, _ in selector.select():
                    fallen = self._heard(key.data)
                    if self._is_over:
                        return
                    if fallen is not None:
                        self._fall(fallen)
                        return
                    if key.data.has_left:
                        selector.unregister(key.fileobj)

    def _heard(self, peer: _Peer) -> dict[str, Any] | None:
        """Returns what is said of a process that is gone; None if none is."""
        try:
            messages = peer.receive()
        except OSError as error:
            is_dead = isinstance(error, ConnectionError)
            silent = f"its host did not answer for {self._lost_after_seconds:,.0f} s"
            return self._of("lost", peer.place, "it was killed" if is_dead else silent)
        for message in messages:
            if message["kind"] == "bye":
                peer.has_left = True
            elif message["kind"] == "failed" and "host" not in message:
                return self._of("failed", peer.place, message["why"])
            else:
                return message
        return None

    def _of(self, kind: str, place: Place, why: str) -> dict[str, Any]:
        return {"kind": kind, "rank": place.rank, "host": place.host, "why": why}

    def _fall(self, fallen: Mapping[str, Any]) -> None:
        """Passes on that a process is gone, and ends this one unless it ends by itself."""
        if self._place.rank == 0:
            self._send(fallen)
        self._words = self._in_words(fallen)
        # The first that is left on its host.
        self._speaks = self._place.local_rank == (1 if fallen["rank"] == self._place.node else 0)
        self._has_fallen.set()
        seconds = SECONDS_TO_HEAR if fallen["kind"] == "lost" else SECONDS_TO_FOLLOW
        if self._is_taken.wait(seconds) or not self._claim.acquire(blocking=False):
            return
        with _writing:
            if self._speaks:
                Console(stderr=True).show_cursor()
                print_error(self._words)
            os._exit(STATUS_FAILED)

    def _in_words(self, fallen: Mapping[str, Any]) -> str:
        other = f"process {fallen['rank']} on {fallen['host']}"
        happened = f"failed ({fallen['why']})" if fallen["kind"] == "failed" else "is lost"
        why = "" if fallen["kind"] == "failed" else f" ({fallen['why']})"
        return (
            f"{self._place}: {other} {happened}{why}; what it said last says more. All "
            "processes of this run end. The last checkpoint stays: run the same command again, on "
            "the hosts that are left, too, to go on"
        )
