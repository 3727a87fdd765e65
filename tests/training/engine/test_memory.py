import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from training.engine.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
for _ in range(8):  # until the heap has grown to what a round needs
    torch.zeros(8 * 2**20).add_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.zeros(8 * 2**20).add_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_memory_that_is_kept_is_not_cleared_anew_by_the_kernel() -> None:
    faults = {}
    for way in ("kept", "given back"):
        command = [sys.executable, "-c", PROGRAM, way]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        faults[way] = int(done.stdout)
    assert faults["kept"] < 0.1 * faults["given back"]
