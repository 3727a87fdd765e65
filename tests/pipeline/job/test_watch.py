"""The watchdog tells a worker that was lost from one that is done, by what it did."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from pipeline.job.watch import Worker, WorkerWatch

WAITS = "import signal; signal.pause()"


@dataclass
class Line:
    """A runner that has, or has not, given something to a worker that it waits for."""

    waits: bool

    def has_joined(self) -> bool:
        return True

    def has_work(self) -> bool:
        return self.waits

    def give_up(self) -> None:
        self.waits = False


@pytest.fixture
def started() -> Iterator[ExitStack]:
    with ExitStack() as processes:
        yield processes


def worker(started: ExitStack, program: str = WAITS, *, has_work: bool = False) -> Worker:
    process = subprocess.Popen([sys.executable, "-S", "-c", program])
    started.callback(process.wait)
    started.callback(process.kill)
    return Worker(process, Line(has_work))


def gone(started: ExitStack, program: str, *, has_work: bool = False) -> Worker:
    one = worker(started, program, has_work=has_work)
    one.process.wait()
    return one


def looked_twice(*workers: Worker) -> list[Worker]:
    watch = WorkerWatch()
    for one in workers:
        watch.add(one)
    assert watch.lost() == []  # one look is not enough
    return watch.lost()


def test_a_worker_at_work_or_waiting_for_it_is_not_lost(started):
    assert looked_twice(worker(started, has_work=True), worker(started)) == []


def test_a_killed_worker_is_lost_whether_it_had_work_or_not(started):
    kill = "import os; os.kill(os.getpid(), 9)"
    busy, idle = gone(started, kill, has_work=True), gone(started, kill)
    assert looked_twice(busy, idle) == [busy, idle]
    assert busy.ending() == "SIGKILL"


def test_a_worker_that_leaves_in_order_is_lost_only_if_something_is_wanted_of_it(started):
    done, owing = gone(started, "pass"), gone(started, "pass", has_work=True)
    assert looked_twice(done, owing) == [owing]
    assert owing.ending() == "status 0"


@pytest.mark.parametrize("program", ["pass", "raise SystemExit(3)", "import os; os.abort()"])
def test_a_worker_that_was_told_to_end_is_not_lost_however_it_ends(started, program):
    told = worker(started, f"input()\n{program}")
    told.was_told_to_end = True
    told.process.kill()
    told.process.wait()
    assert looked_twice(told) == []


def test_ending_all_ends_also_those_that_heed_no_signal_and_they_did_not_end_badly(started):
    deaf = "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); signal.pause()"
    watch, workers = WorkerWatch(), [worker(started, deaf, has_work=True), worker(started)]
    died = gone(started, "raise SystemExit(3)")
    for one in (*workers, died):
        watch.add(one)
    watch.end_all()
    assert [one.process.poll() for one in workers] == [-signal.SIGKILL] * 2
    assert watch.lost() == [] and watch.lost() == [died]
    assert watch.ended_badly() == [died]
    assert not any(one.line.has_work() for one in workers)  # nobody waits for them any more
