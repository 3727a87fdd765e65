import os
import signal
import subprocess
import sys

import pytest

from pipeline.job.lock import hold_as_worker, hold_folder
from schemas.errors import ConfigError
from schemas.shards import DatasetLayout

HOLD = """
import sys, time
from pipeline.job.lock import hold_folder
from schemas.shards import DatasetLayout
with hold_folder(DatasetLayout(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""

WORK = """
import sys, time
from pathlib import Path
from pipeline.job.lock import hold_as_worker
held = hold_as_worker(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def start(program, *arguments):
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process):
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_job_is_refused_and_told_who_holds_the_folder(tmp_path):
    holder = start(HOLD, tmp_path)
    try:
        with (
            pytest.raises(ConfigError, match=f"process {holder.pid} on .* since"),
            hold_folder(DatasetLayout(str(tmp_path))),
        ):
            pass
    finally:
        end(holder)


def test_the_lock_of_a_killed_job_is_taken_over_and_its_holder_named(tmp_path):
    holder = start(HOLD, tmp_path)
    os.kill(holder.pid, signal.SIGKILL)
    end(holder)
    with hold_folder(DatasetLayout(str(tmp_path))) as left_behind:
        assert left_behind is not None
        assert left_behind.process == holder.pid


def test_a_job_that_ended_well_leaves_nothing_behind(tmp_path):
    layout = DatasetLayout(str(tmp_path))
    with hold_folder(layout):
        pass
    with hold_folder(layout) as left_behind:
        assert left_behind is None


def test_a_job_waits_for_the_workers_of_a_dead_one(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.job.lock.WORKER_PATIENCE_SECONDS", 0.3)
    (tmp_path / "_run").mkdir()
    worker = start(WORK, tmp_path / "_run")
    layout = DatasetLayout(str(tmp_path))
    try:
        with pytest.raises(ConfigError, match="worker processes of an earlier job"):
            hold_folder(layout).__enter__()
    finally:
        end(worker)
    with hold_folder(layout):
        held = hold_as_worker(tmp_path / "_run")
        held.close()


def test_a_job_that_gives_up_on_the_workers_of_a_dead_one_does_not_take_its_place(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("pipeline.job.lock.WORKER_PATIENCE_SECONDS", 0.0)
    holder = start(HOLD, tmp_path)
    end(holder)
    worker = start(WORK, tmp_path / "_run")
    layout = DatasetLayout(str(tmp_path))
    try:
        with pytest.raises(ConfigError, match="worker processes of an earlier job"):
            hold_folder(layout).__enter__()
    finally:
        end(worker)
    with hold_folder(layout) as left_behind:
        assert left_behind is not None
        assert left_behind.process == holder.pid


def test_a_folder_that_cannot_be_written_to_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match="cannot write to"),
        hold_folder(DatasetLayout(str(tmp_path / "file" / "out"))),
    ):
        pass
