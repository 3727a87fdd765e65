"""The demo stops where one of its commands does."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SAVES_AND_ENDS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit({status}))
print("ready", flush=True)
time.sleep(100)
"""
RUNS_A_COMMAND = """
import sys
sys.path.insert(0, {examples!r})
from demo import run_command
status, _ = run_command([sys.executable, "-c", {command!r}], None)
print("command ended", flush=True)
sys.exit(status)
"""


@pytest.mark.parametrize("status", [0, 143])
def test_sigterm_ends_the_command_and_the_demo_with_143(status: int) -> None:
    command = SAVES_AND_ENDS.format(status=status)
    code = RUNS_A_COMMAND.format(examples=str(EXAMPLES), command=command)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        assert demo.stdout.readline() == "ready\n"
        demo.send_signal(signal.SIGTERM)
        assert demo.stdout.readline() == "command ended\n"
        assert demo.wait(timeout=120) == 143


@pytest.mark.parametrize(
    ("command", "status"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)]
)
def test_the_status_of_a_command_is_the_demos(command: str, status: int) -> None:
    code = RUNS_A_COMMAND.format(examples=str(EXAMPLES), command=command)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == status
