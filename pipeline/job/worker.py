"""A worker process of the local runner: Beam's own, which also dies with the job it works for."""

import os
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from pipeline.job.lock import hold_as_worker
from pipeline.job.log import lossy_output
from schemas.arithmetic import keep_products_reproducible
from schemas.memory import keep_freed_memory, large_imports

PARENT_CHECK_SECONDS = 0.5


def main(job_process: int, run_folder: str | None) -> None:
    """Serves the job that started this process until the job or its process ends.

    Args:
        run_folder: local folder of the job's lock and logs; None for a dataset on an object store.
    """
    keep_products_reproducible()
    keep_freed_memory()
    threading.Thread(target=_die_with, args=(job_process,), daemon=True).start()
    with ExitStack() as held:
        if run_folder is not None:
            _write_output_to_log(Path(run_folder) / "logs")
            held.enter_context(hold_as_worker(Path(run_folder)))
        with large_imports():
            from apache_beam.runners.worker import sdk_worker_main

            from pipeline.job.inspection import remember_inspections

        remember_inspections()
        sdk_worker_main.main(sys.argv)
        sys.stdout.flush()
        sys.stderr.flush()
        # All work is committed: to take models and libraries apart would only take time.
        os._exit(0)


def _die_with(job_process: int) -> None:
    """Ends this process at once when the job is gone, so that no two jobs write to a folder."""
    while os.getppid() == job_process:
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(1)


def _write_output_to_log(folder: Path) -> None:
    """Sends what the worker and its libraries print to a file, away from the terminal."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log = os.open(
            worker_log(folder, os.getpid()), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644
        )
    except OSError:  # the disk is full: the work itself will say so
        log = os.open(os.devnull, os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    sys.stdout, sys.stderr = lossy_output(1), lossy_output(2)


def worker_log(folder: Path, process: int) -> Path:
    """Returns the file that a worker process prints to."""
    return folder / f"worker-{process}.log"


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
