"""Who works on a folder, as a lock says it."""

import os
import subprocess
import sys

from pipeline.job.holder import is_running, parse_holder, this_process


def test_a_process_runs_until_it_has_ended():
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    assert is_running(os.getpid())
    assert not is_running(process.pid)


def test_a_lock_is_read_as_it_was_written_and_half_of_one_is_nobodys():
    mine = this_process()
    text = mine.to_json()
    assert parse_holder(text) == mine
    assert [parse_holder(part) for part in ("", text[: len(text) // 2], "{}")] == [None] * 3
