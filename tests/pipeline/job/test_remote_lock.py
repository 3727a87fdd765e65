"""The lock of a folder on an object store; test_object_store.py has it on an S3 server."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from pipeline.job.holder import Holder
from pipeline.job.lock import hold_folder
from schemas.errors import ConfigError
from schemas.shards import DatasetLayout
from schemas.storage import commit_text


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
def remote(request, monkeypatch):
    """A folder on a store on which nobody else writes."""
    monkeypatch.setattr("pipeline.job.remote_lock.SETTLE_SECONDS", 0.0)
    return DatasetLayout(f"memory://{request.node.name}")


def test_a_folder_on_an_object_store_is_held_by_whoever_gives_signs_of_life(remote):
    commit_text(f"{remote.run}/lock.json", remote_holder())
    with pytest.raises(ConfigError, match="process 1 on elsewhere"), hold_folder(remote):
        pass


def test_a_silent_holder_on_an_object_store_counts_as_dead(remote):
    commit_text(f"{remote.run}/lock.json", remote_holder(seen_unix_seconds=0.0))
    with hold_folder(remote) as left_behind:
        assert isinstance(left_behind, Holder)
    with hold_folder(remote) as left_behind:
        assert left_behind is None


def test_a_holder_of_this_very_process_number_was_an_earlier_container(remote):
    here = remote_holder(
        host=socket.gethostname(), process=os.getpid(), seen_unix_seconds=time.time()
    )
    commit_text(f"{remote.run}/lock.json", here)
    with hold_folder(remote) as left_behind:
        assert left_behind is not None
        assert left_behind.process == os.getpid()


def test_a_holder_on_this_host_is_dead_as_soon_as_its_process_is(remote):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    values = {"host": socket.gethostname(), "process": process.pid}
    commit_text(f"{remote.run}/lock.json", remote_holder(**values, seen_unix_seconds=time.time()))
    try:
        with pytest.raises(ConfigError, match=f"process {process.pid} on"), hold_folder(remote):
            pass
    finally:
        process.communicate()
    with hold_folder(remote) as left_behind:
        assert left_behind is not None
