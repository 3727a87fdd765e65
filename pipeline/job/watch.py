"""The watchdog: a worker process that dies must end the job, and one that is done must not.

Which of the two it is, is told by what the worker did, never by a clock.
"""

import signal
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.job.worker import worker_log

END_SECONDS = 10.0
"""How long a killed process is waited for; one in the middle of a disk's work can take a while."""


class WorkerProcess(Protocol):
    """What is known of a worker's process, a child of this one or an actor on a cluster."""

    @property
    def pid(self) -> int:
        """The process id on its own machine."""

    def poll(self) -> int | None:
        """Returns its status once it has ended."""

    def kill(self) -> None:
        """Ends it at once."""

    def wait(self, timeout: float | None = None) -> int:
        """Returns its status once it has ended, or raises `subprocess.TimeoutExpired`."""


class Line(Protocol):
    """What lies between the runner and a worker."""

    def has_joined(self) -> bool:
        """Returns whether the worker has ever come to work."""

    def has_work(self) -> bool:
        """Returns whether the worker was given something that it has not answered."""

    def give_up(self) -> None:
        """Tells the runner that the answers it waits for will not come."""


@dataclass(slots=True, eq=False)
class Worker:
    """A worker process of this job, and what is known of its end."""

    process: WorkerProcess
    line: Line
    was_told_to_end: bool = False
    """By the runner, while it was alive: nothing more is wanted of it."""
    was_ended: bool = False
    """By the watchdog, for whatever reason."""

    @property
    def number(self) -> int:
        """The process id."""
        return self.process.pid

    @property
    def host(self) -> str:
        """The name of the machine that it works on; "" for this one."""
        return ""

    def output(self, logs: Path) -> str:
        """Returns where to find what it printed."""
        return str(worker_log(logs, self.number))

    def lost_its_machine(self) -> bool:
        """Returns whether the machine that it worked on is gone too."""
        return False

    def refusal(self) -> Exception | None:
        """Returns why it would not begin to work, if that is for people to mend."""
        return None

    def is_lost(self) -> bool:
        """Returns whether it is gone although the job still counts on it."""
        status = self.process.poll()
        if status is None or self.was_told_to_end or self.was_ended:
            return False
        return status != 0 or self.line.has_work()

    def ended_badly(self) -> bool:
        """Returns whether it ended, by no doing of ours, other than one whose work is done."""
        return self.process.poll() not in (None, 0) and not self.was_ended

    def end(self) -> None:
        """Ends it at once. What it holds is safe: a shard is committed whole or not at all."""
        self.was_ended = True
        self.process.kill()

    def ending(self) -> str:
        """Returns how it ended, for people: `SIGKILL` or `status 3`."""
        status = self.process.poll()
        if status is not None and status < 0:
            with suppress(ValueError):
                return signal.Signals(-status).name
        return f"status {status}"


class WorkerWatch:
    """Knows the worker processes of this job, and which of them are lost."""

    def __init__(self) -> None:
        self._workers: list[Worker] = []
        self._lock = threading.Lock()
        self._suspects: set[int] = set()

    def add(self, worker: Worker) -> None:
        """Takes note of a worker that was started."""
        with self._lock:
            self._workers.append(worker)

    def _all(self) -> list[Worker]:
        with self._lock:
            return list(self._workers)

    def lost(self) -> list[Worker]:
        """Returns the workers that were lost at this look and at the one before.

        Between the two, a signal that went to the job and its workers alike reaches the job too.
        """
        lost = [worker for worker in self._all() if worker.is_lost()]
        certain = [worker for worker in lost if worker.number in self._suspects]
        self._suspects = {worker.number for worker in lost}
        return certain

    def ended_badly(self) -> list[Worker]:
        """Returns the workers that ended by no doing of ours and not in order."""
        return [worker for worker in self._all() if worker.ended_badly()]

    def end_all(self) -> None:
        """Ends the workers that are left, all at the same time, and the runner's wait for them."""
        left = [worker for worker in self._all() if worker.process.poll() is None]
        for worker in left:
            worker.end()
        for worker in left:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(END_SECONDS)
        self.give_up()

    def give_up(self) -> None:
        """Ends the runner's wait for workers that are gone."""
        for worker in self._all():
            if worker.process.poll() is not None:
                worker.line.give_up()
