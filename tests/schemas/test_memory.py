import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, threading
import numpy as np
from schemas import memory
way, megabytes = sys.argv[1], int(sys.argv[2])
if way != "given back":
    assert getattr(memory, way)()
def fill(megabytes):
    # Several at once: glibc keeps a single one of up to 32 MiB by itself.
    for array in [np.empty(megabytes << 20, np.uint8) for _ in range(4)]:
        array.fill(1)
def work():
    for _ in range(4):  # until the heap has grown to what a round needs
        fill(megabytes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        fill(megabytes)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def faults(way: str, megabytes: int) -> int:
    """Returns the page faults of a thread that fills and frees four arrays four times."""
    command = [sys.executable, "-c", PROGRAM, way, str(megabytes)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
@pytest.mark.parametrize(
    ("way", "megabytes"),
    # 80 MiB do not fit into the heap of a thread of its own.
    [("keep_freed_memory", 32), ("keep_freed_memory", 80), ("keep_memory_of_images", 8)],
)
def test_memory_that_is_kept_is_not_cleared_anew_by_the_kernel(way: str, megabytes: int) -> None:
    assert faults(way, megabytes) < 0.1 * faults("given back", megabytes)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_a_decoder_gives_the_memory_of_a_large_image_back() -> None:
    assert faults("keep_memory_of_images", 40) > 0.5 * faults("given back", 40)


def test_garbage_is_not_looked_for_during_large_imports_nor_in_what_they_made() -> None:
    program = """
import gc
from schemas.memory import large_imports
with large_imports():
    assert not gc.isenabled()
assert gc.isenabled() and gc.get_freeze_count() == 0
with large_imports():
    import schemas.terminal
assert gc.isenabled() and gc.get_freeze_count() > 1000
gc.disable()
with large_imports():
    pass
assert not gc.isenabled()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
