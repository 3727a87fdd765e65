import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_no_process_waits_for_another_when_only_some_hold_images():
    root = Path(__file__).parents[3]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "-m", "tests.training.model.zero3_mixed_ranks",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rank 0 is done" in done.stdout and "rank 1 is done" in done.stdout
