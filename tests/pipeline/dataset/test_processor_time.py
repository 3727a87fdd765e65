import subprocess
import sys

from pipeline.dataset.processor_time import count_in, cpu_seconds, cpu_seconds_of, end_process

BUSY = """
import time
while time.process_time() < 0.5:
    pass
print("done", flush=True)
time.sleep(3600)
"""


def test_a_child_counts_while_it_lives_and_once_when_it_has_ended():
    before = cpu_seconds()
    child = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE)
    count_in(child.pid)
    assert child.stdout.readline() == b"done\n"
    living = cpu_seconds()
    assert living - before >= 0.45
    assert cpu_seconds_of(child.pid) >= 0.45
    child.stdout.close()
    assert end_process(child) == -9
    assert -0.05 <= cpu_seconds() - living < 0.25  # neither lost nor counted twice
    assert cpu_seconds_of(child.pid) == 0
