"""The job's log: what Beam and the libraries say goes to a file, away from the terminal."""

import io
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from schemas.shards import DatasetLayout
from schemas.storage import explaining_writes, is_local, local_path
from schemas.terminal import shown_bytes


def job_log_path(layout: DatasetLayout) -> Path | None:
    """Returns where the job's log is; None for a dataset on an object store."""
    if not is_local(layout.root):
        return None
    return Path(local_path(layout.run)) / "logs" / "job.log"


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
    """Writes warnings, and errors of threads, to the job's log while the block runs."""
    path = job_log_path(layout)
    handler: logging.Handler = logging.NullHandler()
    if path is not None:
        with explaining_writes(str(path), path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        handler = logging.StreamHandler(lossy_output(descriptor))
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
        if isinstance(handler, logging.StreamHandler):
            handler.stream.close()


def _log_thread_error(error: threading.ExceptHookArgs) -> None:
    """Logs the end of a thread: Beam's own threads end so when a worker is gone."""
    name = error.thread.name if error.thread else "a thread"
    logging.getLogger("apache_beam").error(
        "%s ended with %s: %s", name, error.exc_type.__name__, error.exc_value
    )
