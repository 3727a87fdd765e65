"""One job per folder: who works on a dataset says so, and a second job is told who it is."""

import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from schemas.errors import ConfigError, StorageError
from schemas.shards import DatasetLayout
from schemas.storage import (
    commit_text,
    is_local,
    local_path,
    read_bytes,
    remove,
    write_failure,
)

HEARTBEAT_SECONDS = 30.0
"""How often the holder of a folder on an object store says that it is alive."""

STALE_SECONDS = 180.0
"""Silence after which such a holder counts as dead."""

SILENT_BEATS = 2
"""Beats before it would count as dead that a holder which cannot be heard ends itself."""

SETTLE_SECONDS = 1.0
"""From writing its name to being sure that no other job wrote at the same time."""

WORKER_PATIENCE_SECONDS = 30.0
"""How long a job waits for the workers of a dead job to notice that and end."""

WORKERS_LOCK = "workers.lock"
"""File in the run folder that every worker process holds while it lives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who works on a folder."""

    host: str
    process: int
    since: str
    """UTC, ISO 8601."""
    token: str
    """Tells two jobs of the same process number apart."""
    seen_unix_seconds: float

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"


@contextmanager
def hold_folder(layout: DatasetLayout) -> Iterator[Holder | None]:
    """Keeps every other job out of the folder while the block runs.

    Yields the holder that a dead job left behind, if one did.

    Raises:
        ConfigError: if another job works on the folder, or it cannot be written to.
    """
    hold = _hold_local if is_local(layout.root) else _hold_remote
    with hold(layout) as left_behind:
        yield left_behind


def holder_of(layout: DatasetLayout) -> Holder | None:
    """Returns who says to work on a folder now; None if nobody does.

    Raises:
        OSError: if a folder on a disk has no lock: it is none that a job ever held.
        StorageError: if the store is out of reach.
    """
    if is_local(layout.root):
        return _parse_holder(Path(local_path(layout.run), "lock").read_text())
    return _read_remote(f"{layout.run}/lock.json")


def _this_process() -> Holder:
    return Holder(
        host=socket.gethostname(),
        process=os.getpid(),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        token=uuid.uuid4().hex,
        seen_unix_seconds=time.time(),
    )


def _refusal(layout: DatasetLayout, holder: Holder | None) -> ConfigError:
    who = str(holder) if holder else "a job that has only just started"
    return ConfigError(
        f"another job works on {layout.root} ({who}): wait for it, stop it, or use another --out"
    )


def _parse_holder(text: str) -> Holder | None:
    """Returns the holder in a lock file; None if it is empty or cut short by a crash."""
    try:
        return Holder(**json.loads(text))
    except (json.JSONDecodeError, TypeError):
        return None


@contextmanager
def _hold_local(layout: DatasetLayout) -> Iterator[Holder | None]:
    run = Path(local_path(layout.run))
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = (run / "lock").open("a+")
    except OSError as error:
        raise _cannot_write(layout, error) from error
    with lock:
        if not _try_lock(lock, fcntl.LOCK_EX, layout):
            lock.seek(0)
            raise _refusal(layout, _parse_holder(lock.read()))
        lock.seek(0)
        left_behind = _parse_holder(lock.read())
        try:
            wait_for_workers(layout)
            _write_holder(lock, json.dumps(asdict(_this_process())))
        except OSError as error:
            raise _cannot_write(layout, error) from error
        try:
            yield left_behind
        finally:
            _write_holder(lock, "")


def _cannot_write(layout: DatasetLayout, error: OSError) -> ConfigError:
    if error.errno is None:
        return ConfigError(f"cannot write to {layout.root}: {error}")
    root = Path(local_path(layout.root))
    return ConfigError(write_failure(f"to {layout.root}", root, error.errno))


def _write_holder(lock: IO[str], text: str) -> None:
    """Replaces what a lock file says, past its buffer: closing it must not fail on a full disk."""
    os.ftruncate(lock.fileno(), 0)
    os.pwrite(lock.fileno(), text.encode(), 0)


def _try_lock(lock: IO[str], kind: int, layout: DatasetLayout) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise ConfigError(
            f"the file system of {layout.root} cannot lock files ({error.strerror}): "
            "use a folder on a local disk or an object store"
        ) from error
    return True


def wait_for_workers(layout: DatasetLayout) -> None:
    """Waits until no worker of a job or attempt that ended is left that could still write.

    Workers of a dataset on an object store hold no lock, and are not waited for.

    Raises:
        ConfigError: if one lives on.
    """
    if not is_local(layout.root):
        return
    deadline = time.monotonic() + WORKER_PATIENCE_SECONDS
    with Path(local_path(layout.run), WORKERS_LOCK).open("a+") as lock:
        while not _try_lock(lock, fcntl.LOCK_EX, layout):
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"worker processes of an earlier job still write to {layout.root}: "
                    "end them, or use another --out"
                )
            time.sleep(0.1)


def hold_as_worker(run_folder: Path) -> IO[str]:
    """Returns the file that marks this worker process as alive while it is open."""
    lock = (run_folder / WORKERS_LOCK).open("a+")
    fcntl.flock(lock, fcntl.LOCK_SH)
    return lock


@contextmanager
def _hold_remote(layout: DatasetLayout) -> Iterator[Holder | None]:
    """Holds a folder on an object store by an object that is renewed while the job lives.

    Object stores have no lock: of two jobs that start within the same second, the one that wrote
    last goes on. A job that finds itself replaced, having been out of reach for long, ends at once.
    """
    path = f"{layout.run}/lock.json"
    mine = _this_process()
    try:
        found = _read_remote(path)
        if found is not None and _is_alive(found):
            raise _refusal(layout, found)
        commit_text(path, json.dumps(asdict(mine)))
        time.sleep(SETTLE_SECONDS)
        now = _read_remote(path)
    except (OSError, StorageError) as error:
        raise ConfigError(f"cannot work on {layout.root}: {error}") from error
    if now is not None and now.token != mine.token:
        raise _refusal(layout, now)
    signs = _Heartbeat(path, mine)
    signs.start()
    try:
        yield found
    finally:
        signs.end()


def _read_remote(path: str) -> Holder | None:
    try:
        return _parse_holder(read_bytes(path).decode())
    except FileNotFoundError:
        return None


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
            now = _read_remote(self._path)
            if now is not None and now.token == self._holder.token:
                remove(self._path)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            with suppress(OSError, StorageError):  # out of reach: the watch knows for how long
                self._give_sign()

    def _give_sign(self) -> None:
        now = _read_remote(self._path)
        if now is not None and now.token != self._holder.token:
            _end_replaced(str(now))
        given_at, seen = time.monotonic(), time.time()
        if self._patience_seconds() <= 0:
            return  # a process that was stopped for a while must not write over the next one's name
        values = {**asdict(self._holder), "seen_unix_seconds": seen}
        commit_text(self._path, json.dumps(values))
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


def is_running(process: int) -> bool:
    """Returns whether there is a process of this number on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
