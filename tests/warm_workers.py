"""Workers of a curation that is a command of the tests, forked where the job would start Python.

They are processes as real as started ones, children of the job with an environment and an end of
their own; what they would import is imported already.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn


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


def fork_workers(count: int) -> None:
    """Forks so many workers of a curation, which wait until the job starts them.

    Later there are threads in the job, and what a thread holds when its process is forked stays
    held. A worker that is not started ends with the job.
    """
    if not count:
        return
    from pipeline.job import local_workers

    waiting: list[tuple[int, int]] = []
    for _ in range(count):
        heard, line = os.pipe()
        pid = os.fork()
        if pid == 0:
            for fd in (line, *(other for _, other in waiting)):
                os.close(fd)
            _work_when_told(heard)
        os.close(heard)
        waiting.append((pid, line))

    def start(command: Sequence[str], env: Mapping[str, str]) -> Any:
        if not waiting:
            return subprocess.Popen(command, env=env)
        pid, line = waiting.pop(0)
        with os.fdopen(line, "w") as told:
            json.dump({"words": list(command), "environment": dict(env)}, told)
        return ForkedProcess(pid)

    starter: Any = local_workers
    starter.subprocess = SimpleNamespace(Popen=start)


def _work_when_told(heard: int) -> NoReturn:
    with os.fdopen(heard) as line:
        request = line.read()
    if not request:
        os._exit(0)

    def work() -> None:
        from pipeline.job.worker import main

        main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)

    _run(work, **json.loads(request))


def _run(main: Callable[[], Any], words: list[str], environment: Mapping[str, str]) -> NoReturn:
    """Runs what `python -m MODULE WORDS` would, and ends as it would."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words[words.index("-m") + 1 :]
    status = 1
    try:
        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        if (error := sys.exc_info()[1]) is not None:
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
