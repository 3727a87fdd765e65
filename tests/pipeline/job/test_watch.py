"""The watchdog tells the worker that died from those that Beam's runner ended because of it."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pipeline.job.watch import WORKER_MODULE, WORKER_THREAD, WorkerWatch


@contextmanager
def worker() -> Iterator[subprocess.Popen[bytes]]:
    """A child of this process that looks like a worker and waits."""
    command = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]
    with subprocess.Popen([*command, WORKER_MODULE], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def fail_as_beam_does(process: subprocess.Popen[bytes]) -> None:
    """Raises in a thread of Beam's name once the worker has ended, as its runner's thread does."""

    def wait() -> None:
        process.wait()
        raise RuntimeError(f"Worker subprocess exited with return code {process.returncode}")

    thread = threading.Thread(target=wait, name=WORKER_THREAD)
    thread.start()
    process.kill()
    thread.join()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_workers_that_end_after_the_first_did_not_die_by_themselves():
    with worker() as first, worker() as second, WorkerWatch() as watch:
        assert watch.lost() is None
        assert watch.died_first() == []
        fail_as_beam_does(first)  # between two looks of the job at its workers
        end(second)
        assert watch.lost() is None  # that is certain only after a while
        assert watch.died_first() == [first.pid]


def test_a_death_is_noted_at_a_look_too():
    with worker() as first, worker() as second, WorkerWatch() as watch:
        assert watch.lost() is None
        end(first)
        assert watch.lost() is None
        end(second)
        assert watch.lost() is None
        assert watch.died_first() == [first.pid]
