"""Workers of a curation that is a command of the tests, forked where the job would start Python.

They are processes as real as started ones, children of the job with an environment and an end of
their own; what they would import is imported already.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any


class ForkedProcess:
    """A child that this process forked, with what the watchdog needs of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Returns the exit status, negative for a signal; None while the child runs."""
        with self._lock:
            if self.returncode is None:
                ended, status = os.waitpid(self.pid, os.WNOHANG)
                if ended:
                    self.returncode = os.waitstatus_to_exitcode(status)
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Returns the exit status once the child has ended."""
        give_up_at = time.monotonic() + (float("inf") if timeout is None else timeout)
        while (status := self.poll()) is None:
            if time.monotonic() > give_up_at:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            time.sleep(0.02)
        return status

    def kill(self) -> None:
        """Ends the child at once, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def fork_workers(count: int) -> Callable[[], None] | None:
    """Forks so many workers of a curation; returns, in each, its work once the job starts it.

    They are forked before the job begins: later there are threads in it, and what a thread holds
    when its process is forked stays held. A worker that is not started ends with the job, which
    starts Python for those beyond the count.
    """
    waiting: list[tuple[int, int]] = []
    for _ in range(count):
        heard, line = os.pipe()
        pid = os.fork()
        if pid == 0:
            for fd in (line, *(other for _, other in waiting)):
                os.close(fd)
            return _work_when_told(heard)
        os.close(heard)
        waiting.append((pid, line))
    if waiting:
        _start_from(waiting)
    return None


def _start_from(waiting: list[tuple[int, int]]) -> None:
    """Lets this process's job take the waiting workers where it would start processes."""
    from pipeline.job import local_workers

    def start(command: Sequence[str], env: Mapping[str, str]) -> Any:
        if not waiting:
            return subprocess.Popen(command, env=env)
        pid, line = waiting.pop(0)
        with os.fdopen(line, "w") as told:
            told.write(json.dumps({"words": list(command), "environment": dict(env)}) + "\n")
        return ForkedProcess(pid)

    starter: Any = local_workers
    starter.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": start})


def _work_when_told(heard: int) -> Callable[[], None]:
    """Returns the work of this process, as `python -m MODULE WORDS` would find it.

    It ends here if the job does.
    """
    with os.fdopen(heard) as line:
        request = line.readline()
    if not request:
        os._exit(0)
    told = json.loads(request)
    os.environ.clear()
    os.environ.update(told["environment"])
    sys.argv = told["words"][told["words"].index("-m") + 1 :]
    logging.getLogger().handlers.clear()  # nothing is set up where Python has only begun
    return _work


def _work() -> None:
    from pipeline.job.worker import main

    main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
