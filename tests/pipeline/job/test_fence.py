"""Workers of an attempt that is over write no more."""

import subprocess
import sys

from pipeline.job.fence import raise_fence
from schemas.shards import DatasetLayout

WORKER = """
import sys
from pipeline.job.fence import keep_within_fence
from schemas.shards import DatasetLayout
from schemas.storage import commit_text
layout, token = DatasetLayout(sys.argv[1]), sys.argv[2]
keep_within_fence(layout, token)
commit_text(layout.root + "/shard", token)
"""


def status_of_worker(layout: DatasetLayout, token: str) -> tuple[int, str]:
    command = [sys.executable, "-c", WORKER, layout.root, token]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_a_worker_of_an_earlier_attempt_ends_before_it_writes(tmp_path):
    layout = DatasetLayout(str(tmp_path))
    first = raise_fence(layout)
    assert status_of_worker(layout, first) == (0, "")
    second = raise_fence(layout)
    status, said = status_of_worker(layout, first)
    assert (status, "attempt at" in said) == (1, True)
    assert (tmp_path / "shard").read_text() == first
    assert status_of_worker(layout, second) == (0, "")
    assert (tmp_path / "shard").read_text() == second
