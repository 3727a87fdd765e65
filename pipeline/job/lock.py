"""One job per folder: who works on a dataset says so, and a second job is told who it is."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipeline.job.holder import Holder, parse_holder, refusal, this_process
from pipeline.job.remote_lock import hold_remote, lock_path, read_remote
from schemas.errors import ConfigError
from schemas.shards import DatasetLayout
from schemas.storage import is_local, local_path, write_failure

WORKER_PATIENCE_SECONDS = 30.0
"""How long a job waits for the workers of a dead job to notice that and end."""

WORKERS_LOCK = "workers.lock"
"""File in the run folder that every worker process holds while it lives."""


@contextmanager
def hold_folder(layout: DatasetLayout) -> Iterator[Holder | None]:
    """Keeps every other job out of the folder while the block runs.

    Yields the holder that a dead job left behind, if one did.

    Raises:
        ConfigError: if another job works on the folder, or it cannot be written to.
    """
    hold = _hold_local if is_local(layout.root) else hold_remote
    with hold(layout) as left_behind:
        yield left_behind


def holder_of(layout: DatasetLayout) -> Holder | None:
    """Returns who says to work on a folder now; None if nobody does.

    Raises:
        OSError: if a folder on a disk has no lock: it is none that a job ever held.
        StorageError: if the store is out of reach.
    """
    if is_local(layout.root):
        return parse_holder(Path(local_path(layout.run), "lock").read_text())
    return read_remote(lock_path(layout))


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
            raise refusal(layout, parse_holder(lock.read()))
        lock.seek(0)
        left_behind = parse_holder(lock.read())
        try:
            wait_for_workers(layout)
            _write_holder(lock, this_process().to_json())
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
