import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from pipeline.job.holder import Holder, is_running
from pipeline.job.lock import hold_as_worker, hold_folder
from schemas.errors import ConfigError
from schemas.shards import DatasetLayout
from schemas.storage import commit_text

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


def remote_holder(**changes):
    values = {
        "host": "elsewhere",
        "process": 1,
        "since": "2026-01-01T00:00:00+00:00",
        "token": "t",
        "seen_unix_seconds": 4e9,
    }
    return json.dumps(values | changes)


@pytest.fixture
def remote(request):
    return DatasetLayout(f"memory://{request.node.name}")


def test_a_folder_on_an_object_store_is_held_by_whoever_gives_signs_of_life(remote):
    commit_text(f"{remote.run}/lock.json", remote_holder())
    with pytest.raises(ConfigError, match="process 1 on elsewhere"), hold_folder(remote):
        pass


@pytest.mark.slow
def test_a_silent_holder_on_an_object_store_counts_as_dead(remote):
    commit_text(f"{remote.run}/lock.json", remote_holder(seen_unix_seconds=0.0))
    with hold_folder(remote) as left_behind:
        assert isinstance(left_behind, Holder)
    with hold_folder(remote) as left_behind:
        assert left_behind is None


@pytest.mark.slow
def test_a_holder_of_this_very_process_number_was_an_earlier_container(remote):
    here = remote_holder(
        host=socket.gethostname(), process=os.getpid(), seen_unix_seconds=time.time()
    )
    commit_text(f"{remote.run}/lock.json", here)
    with hold_folder(remote) as left_behind:
        assert left_behind is not None
        assert left_behind.process == os.getpid()


@pytest.mark.slow
def test_a_holder_on_this_host_is_dead_as_soon_as_its_process_is(remote, tmp_path):
    process = start(HOLD, tmp_path)
    values = {"host": socket.gethostname(), "process": process.pid}
    commit_text(f"{remote.run}/lock.json", remote_holder(**values, seen_unix_seconds=time.time()))
    try:
        with pytest.raises(ConfigError, match=f"process {process.pid} on"), hold_folder(remote):
            pass
    finally:
        end(process)
    with hold_folder(remote) as left_behind:
        assert left_behind is not None


def test_a_process_runs_until_it_has_ended():
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    assert is_running(os.getpid())
    assert not is_running(process.pid)
