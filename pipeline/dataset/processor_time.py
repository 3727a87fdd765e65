"""Processor time of this process, with the processes that work for it, those that live among them.

The system adds a child's time to ours only once the child has ended and was waited for. A process
that lives as long as a stage would count at the stage's end alone, for whatever piece of work ends
then; so what works for us says so, and is asked how far it is.
"""

import resource
import subprocess
import threading
from contextlib import suppress

import psutil

_living: dict[int, psutil.Process] = {}
_lock = threading.Lock()


def count_in(process_id: int) -> None:
    """Counts in what a child of ours takes, until `end_process` ends it."""
    with _lock, suppress(psutil.Error):
        _living[process_id] = psutil.Process(process_id)


def end_process(process: "subprocess.Popen[bytes]") -> int:
    """Returns the status of a child of ours that was killed; what it took stays counted."""
    with _lock:  # or it would count twice, or not at all, for who asks just now
        process.kill()
        status = process.wait()
        _living.pop(process.pid, None)
    return status


def cpu_seconds() -> float:
    """Returns what this process and its children have taken of all cores since they began."""
    with _lock:
        own = sum(_spent(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return own + sum(map(_spent_by, _living.values()))


def cpu_seconds_of(process_id: int) -> float:
    """Returns what a process has taken since it began; 0 if it is no more."""
    with suppress(psutil.Error):
        return _spent_by(psutil.Process(process_id))
    return 0.0


def _spent_by(process: psutil.Process) -> float:
    with suppress(psutil.Error):
        spent = process.cpu_times()
        return float(spent.user + spent.system)
    return 0.0


def _spent(who: int) -> float:
    spent = resource.getrusage(who)
    return spent.ru_utime + spent.ru_stime
