"""The lock of a folder on an object store: an object that says who works there and is alive.

It is made by a conditional write, which of several jobs only one succeeds in. A dead holder's is
taken over by who succeeds in making a claim beside it. Stores that know no conditional write
overwrite: there the job that wrote last goes on, and the others see that a moment later.
"""

import hashlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from pipeline.job.holder import Holder, is_running, parse_holder, refusal, this_process
from schemas.errors import ConfigError, StorageError
from schemas.shards import DatasetLayout
from schemas.storage import (
    commit_text,
    exists,
    file_system,
    reaching_store,
    read_bytes,
    remove,
)

HEARTBEAT_SECONDS = 30.0
"""How often the holder of a folder says that it is alive."""

STALE_SECONDS = 180.0
"""Silence after which a holder counts as dead."""

SILENT_BEATS = 2
"""Beats before it would count as dead that a holder which cannot be heard ends itself."""

SETTLE_SECONDS = 1.0
"""From writing its name to being sure that no other job wrote over it, where a store lets it."""


@contextmanager
def hold_remote(layout: DatasetLayout) -> Iterator[Holder | None]:
    """Holds a folder on an object store by an object that is renewed while the job lives.

    Yields the holder that a dead job left behind, if one did. A job that finds itself replaced,
    having been out of reach for long, ends at once.

    Raises:
        ConfigError: if another job works on the folder, or it cannot be written to.
    """
    path, mine = lock_path(layout), this_process()
    try:
        found = _take(layout, path, mine)
        time.sleep(SETTLE_SECONDS)
        now = read_remote(path)
    except (OSError, StorageError) as error:
        raise ConfigError(f"cannot work on {layout.root}: {error}") from error
    if now is not None and now.token != mine.token:
        raise refusal(layout, now)
    signs = _Heartbeat(path, mine)
    signs.start()
    try:
        yield found
    finally:
        signs.end()


def lock_path(layout: DatasetLayout) -> str:
    """Returns where a folder on an object store says who works on it."""
    return f"{layout.run}/lock.json"


def claim_path(layout: DatasetLayout, dead: Holder | None) -> str:
    """Returns what a job makes that is to follow a dead holder; None for one nobody can read."""
    name = hashlib.sha256(_token_of(dead).encode()).hexdigest()[:32]
    return f"{layout.run}/lock.{name}.claim"


def read_remote(path: str) -> Holder | None:
    """Returns who a lock says to hold it; None if nobody does.

    Raises:
        StorageError: if the store is out of reach.
    """
    try:
        return parse_holder(read_bytes(path).decode())
    except FileNotFoundError:
        return None


def _take(layout: DatasetLayout, path: str, mine: Holder) -> Holder | None:
    """Makes the lock this process's; returns the dead holder that it was taken from, if any.

    Raises:
        ConfigError: if another job has it.
    """
    if not exists(path):
        if not _create(path, mine):
            raise refusal(layout, read_remote(path))
        return None
    found = read_remote(path)
    if found is not None and _is_alive(found):
        raise refusal(layout, found)
    claim = claim_path(layout, found)
    other = read_remote(claim)
    if other is not None and not _is_alive(other):
        remove(claim)
    if not _create(claim, mine):
        raise refusal(layout, read_remote(claim))
    try:
        now = read_remote(path)
        if _token_of(now) != _token_of(found):  # taken over, by a claim that is gone by now
            raise refusal(layout, now)
        commit_text(path, mine.to_json())
    finally:
        with suppress(OSError, StorageError):  # left there, it says nothing of the new holder
            remove(claim)
    return found


def _token_of(holder: Holder | None) -> str:
    """Returns a holder's token; "" of a lock that nobody can read, which is nobody's."""
    return "" if holder is None else holder.token


def _create(path: str, mine: Holder) -> bool:
    """Returns whether a file was made that says who this is: False if there is one of another's.

    Raises:
        StorageError: if the store is out of reach, or does not let this job write.
    """
    filesystem, name = file_system(path)
    try:
        with reaching_store(path):
            filesystem.pipe_file(name, mine.to_json().encode(), mode="create")
    except FileExistsError:
        pass  # perhaps by this very request, which was sent again after its answer was lost
    except (OSError, StorageError):
        # Some stores know no such writes, others say in words of their own that there is one.
        if read_remote(path) is None:
            commit_text(path, mine.to_json())
    now = read_remote(path)
    return now is not None and now.token == mine.token


def _is_alive(holder: Holder) -> bool:
    """Returns whether a job still works: it gave a sign of life, and was not seen to be dead.

    On this host a process is known to be gone at once. A number says nothing against it: in a
    container that is started anew the next job has the name and the number of the last.
    """
    if time.time() - holder.seen_unix_seconds >= STALE_SECONDS:
        return False
    is_of_this_host = holder.host == socket.gethostname()
    return not is_of_this_host or (holder.process != os.getpid() and is_running(holder.process))


class _Heartbeat:
    """The signs of life of a holder, and a watch that ends the job when they stay away.

    The watch has a thread of its own: a store that takes minutes to answer must not keep a job
    alive that others count as dead, nor let it write its name over that of the next.
    """

    def __init__(self, path: str, holder: Holder) -> None:
        self._path, self._holder = path, holder
        self._ended = threading.Event()
        self._heard_at = time.monotonic()
        """When the last sign was given that reached the store."""
        self._beats = threading.Thread(target=self._beat, daemon=True)
        self._watch = threading.Thread(target=self._end_if_silent, daemon=True)

    def start(self) -> None:
        """Begins to give signs of life."""
        self._beats.start()
        self._watch.start()

    def end(self) -> None:
        """Lets go of the folder; a store that is out of reach just then is told by silence."""
        self._ended.set()
        self._beats.join()
        self._watch.join()
        with suppress(OSError, StorageError):
            now = read_remote(self._path)
            if now is not None and now.token == self._holder.token:
                remove(self._path)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            with suppress(OSError, StorageError):  # out of reach: the watch knows for how long
                self._give_sign()

    def _give_sign(self) -> None:
        now = read_remote(self._path)
        if now is not None and now.token != self._holder.token:
            _end_replaced(str(now))
        given_at, seen = time.monotonic(), time.time()
        if self._patience_seconds() <= 0:
            return  # a process that was stopped for a while must not write over the next one's name
        commit_text(self._path, replace(self._holder, seen_unix_seconds=seen).to_json())
        self._heard_at = given_at

    def _end_if_silent(self) -> None:
        while (left := self._patience_seconds()) > 0:
            if self._ended.wait(left):
                return
        _end_replaced("nobody yet, but the store has been out of reach for too long")

    def _patience_seconds(self) -> float:
        """Returns for how long the holder may still be silent."""
        limit = STALE_SECONDS - SILENT_BEATS * HEARTBEAT_SECONDS
        return self._heard_at + limit - time.monotonic()


def _end_replaced(holder: str) -> None:
    """Ends this process at once, its workers with it: another job may write to the folder now."""
    sys.stderr.write(f"error: this job has lost its hold of the folder to {holder}\n")
    sys.stderr.flush()
    os._exit(1)
