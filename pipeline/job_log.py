"""The job's log: what Beam and the libraries say goes to a file, away from the terminal."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.storage import is_local, local_path
from schemas.shards import DatasetLayout


def job_log_path(layout: DatasetLayout) -> Path | None:
    """Returns where the job's log is; None for a dataset on an object store."""
    if not is_local(layout.root):
        return None
    return Path(local_path(layout.run)) / "logs" / "job.log"


class _LogFile(logging.FileHandler):
    """A log whose lines are lost when the disk is full: the job's error says so, once."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Says nothing, where logging would print a traceback for every line."""


@contextmanager
def logging_to_folder(layout: DatasetLayout) -> Iterator[None]:
    """Writes warnings, and errors of threads, to the job's log while the block runs."""
    path = job_log_path(layout)
    if path is None:
        handler: logging.Handler = logging.NullHandler()
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
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


def _log_thread_error(error: threading.ExceptHookArgs) -> None:
    """Logs the end of a thread: Beam's own threads end so when a worker is gone."""
    name = error.thread.name if error.thread else "a thread"
    logging.getLogger("apache_beam").error(
        "%s ended with %s: %s", name, error.exc_type.__name__, error.exc_value
    )
