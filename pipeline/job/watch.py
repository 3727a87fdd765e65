"""The watchdog: a worker process that dies hard must end the job, not hang it."""

import threading
import time
from types import TracebackType

import psutil

WORKER_MODULE = "pipeline.job.worker"

WORKER_THREAD = "run_worker"
"""Name of the thread of Beam's that waits for a worker; it fails when the worker does."""

GRACE_SECONDS = 10.0
"""From the death of a worker to the end of the job: workers also end when the job is done."""


class WorkerWatch:
    """Knows the worker processes of this job, and which of them are gone."""

    def __init__(self) -> None:
        self._job = psutil.Process()
        self._known: dict[int, psutil.Process] = {}
        self._lost_at: float | None = None
        self._has_failed = False
        self._died_first: list[int] = []

    def __enter__(self) -> "WorkerWatch":
        """Begins to listen for workers that fail, also for those that fail before they are seen."""
        self._log_error, threading.excepthook = threading.excepthook, self._note_failure
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leaves the errors of threads to whom they went to before."""
        threading.excepthook = self._log_error

    def _note_failure(self, error: threading.ExceptHookArgs) -> None:
        if error.thread is not None and error.thread.name == WORKER_THREAD:
            self._has_failed = True
            self._note_deaths()
        self._log_error(error)

    def lost(self) -> list[int] | None:
        """Returns the workers that died while the job went on, once that is certain; else None.

        The list is empty if one died too early to be known by its number.
        """
        gone = self._note_deaths()
        if not gone and not self._has_failed:
            self._lost_at = None
            return None
        now = time.monotonic()
        self._lost_at = self._lost_at or now
        return gone if now - self._lost_at >= GRACE_SECONDS else None

    def died_first(self) -> list[int]:
        """Returns the workers that ended first, for whatever reason.

        When one dies, Beam's runner may end the others in mid-work: these died of nothing.
        """
        return self._died_first

    def _note_deaths(self) -> list[int]:
        self._find_new()
        gone = [number for number, worker in list(self._known.items()) if not _is_alive(worker)]
        self._died_first = self._died_first or gone
        return gone

    def end_all(self) -> None:
        """Ends the workers that are left, at once."""
        self._find_new()
        for worker in self._known.values():
            if _is_alive(worker):
                worker.kill()
        psutil.wait_procs(list(self._known.values()), timeout=10)

    def _find_new(self) -> None:
        for child in self._job.children():
            if child.pid not in self._known and _is_worker(child):
                self._known[child.pid] = child


def _is_worker(process: psutil.Process) -> bool:
    try:
        return WORKER_MODULE in process.cmdline()
    except psutil.Error:
        return False


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
