"""The job's log: what Beam and the libraries say goes to a file, away from the terminal."""

import io
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from schemas.errors import StorageError
from schemas.shards import DatasetLayout
from schemas.storage import (
    commit_text,
    exists,
    explaining_writes,
    is_local,
    local_path,
    read_bytes,
)
from schemas.terminal import shown_bytes

KEPT_BYTES = 1_000_000
"""Of a log on an object store, the last: it is written anew as a whole."""


def job_log(layout: DatasetLayout) -> str:
    """Returns where the job's log is; on an object store, once the job has ended."""
    path = f"{layout.run}/logs/job.log"
    return local_path(path) if is_local(path) else path


class _Output(io.FileIO):
    """A file that loses what is written to it when its disk is full, rather than raise.

    The job's own error says that the disk is full; a lost line of a log must not hide it. And
    Beam's worker prints an error before it answers the runner: were the print to fail, there would
    be no answer, and the runner would wait for ever.
    """

    def write(self, data: Any) -> int:
        """Returns how many bytes there were, written or lost."""
        with suppress(OSError):
            super().write(shown_bytes(bytes(data)))
        return memoryview(data).nbytes


class _Indented(logging.Formatter):
    """Sets the further lines of a message in, so that none of them passes for one of the log's."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the lines of a record."""
        return super().format(record).replace("\n", "\n    ")


def lossy_output(descriptor: int) -> io.TextIOWrapper:
    """Returns a text file over an open descriptor that no full disk makes raise."""
    raw = _Output(descriptor, "w", closefd=descriptor > 2)
    return io.TextIOWrapper(io.BufferedWriter(raw), line_buffering=True, errors="backslashreplace")


@contextmanager
def logging_to_folder(layout: DatasetLayout) -> Iterator[None]:
    """Writes warnings, and errors of threads, to the job's log while the block runs.

    Of a dataset on an object store they are in a temporary file meanwhile.
    """
    with (
        _log_file(layout) as descriptor,
        _handling(logging.StreamHandler(lossy_output(descriptor))),
    ):
        yield


@contextmanager
def _log_file(layout: DatasetLayout) -> Iterator[int]:
    """Gives a file that the log is written to; its writer closes it."""
    path = job_log(layout)
    if is_local(layout.root):
        with explaining_writes(path, Path(path).parent):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        yield descriptor
        return
    descriptor, name = tempfile.mkstemp(prefix="aligngpt-job-", suffix=".log")
    try:
        yield descriptor
    finally:
        _keep_on_store(Path(name), path)


def _keep_on_store(log: Path, path: str) -> None:
    """Appends a log to that on a store, and removes it, unless the store is out of reach."""
    new = log.read_bytes()
    try:
        if new:
            old = read_bytes(path) if exists(path) else b""
            commit_text(path, (old + new)[-KEPT_BYTES:].decode(errors="replace"))
    except (OSError, StorageError):
        sys.stderr.write(f"the log of this job is in {log}: {path} is out of reach\n")
        return
    log.unlink(missing_ok=True)


@contextmanager
def _handling(handler: "logging.StreamHandler[io.TextIOWrapper]") -> Iterator[None]:
    """Hands warnings of all loggers, Beam's too, and errors of threads to a handler."""
    handler.setFormatter(_Indented("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    beam = logging.getLogger("apache_beam")
    root = logging.getLogger()
    before, threading.excepthook = threading.excepthook, _log_thread_error
    root.addHandler(handler)
    beam.addHandler(handler)
    beam.propagate = False
    try:
        yield
    finally:
        threading.excepthook = before
        beam.propagate = True
        beam.removeHandler(handler)
        root.removeHandler(handler)
        handler.close()
        handler.stream.close()


def _log_thread_error(error: threading.ExceptHookArgs) -> None:
    """Logs the end of a thread: Beam's own threads end so when a worker is gone."""
    name = error.thread.name if error.thread else "a thread"
    logging.getLogger("apache_beam").error(
        "%s ended with %s: %s", name, error.exc_type.__name__, error.exc_value
    )
