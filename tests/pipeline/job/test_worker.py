import subprocess
import sys
from pathlib import Path

from pipeline.job.worker import worker_log


def test_a_worker_whose_job_is_gone_ends_by_itself(tmp_path):
    words = [sys.executable, "-m", "pipeline.job.worker", "1", str(tmp_path)]
    assert subprocess.run(words, stdin=subprocess.DEVNULL, check=False).returncode == 1


def test_a_log_is_named_after_its_process():
    assert worker_log(Path("logs"), 12) == Path("logs/worker-12.log")
