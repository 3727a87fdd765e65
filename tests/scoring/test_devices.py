import fcntl
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from schemas.errors import ConfigError
from scoring import devices

ROOT = Path(__file__).parents[2]

CLAIM_IN_A_PROCESS = """
import sys
from types import SimpleNamespace
import torch
from scoring.devices import claim_device
torch.cuda.device_count = lambda: int(sys.argv[1])
torch.cuda.get_device_properties = lambda index: SimpleNamespace(uuid=f"gpu-{index}")
print(claim_device("auto"), claim_device("auto"), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """Returns what makes torch see so many GPUs; none of them is claimed yet."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(devices, "_claims", {})
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"gpu-{index}")
    )

    def see(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    yield see
    for file in devices._claims.values():
        file.close()


@pytest.fixture
def claiming():
    """Returns what starts a process that claims a GPU of so many, and tells which ones it got."""
    processes = []

    def start(count: int) -> tuple[subprocess.Popen[str], list[str]]:
        process = subprocess.Popen(
            [sys.executable, "-c", CLAIM_IN_A_PROCESS, str(count)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process, process.stdout.readline().split()

    yield start
    for process in processes:
        process.communicate()


def test_a_process_keeps_the_gpu_that_it_claimed(gpus):
    gpus(2)
    assert devices.claim_device("auto") == devices.claim_device("cuda") == torch.device("cuda", 0)


@pytest.mark.slow
def test_each_process_takes_a_gpu_of_its_own_and_leaves_it_when_it_ends(gpus, claiming):
    gpus(3)
    assert devices.claim_device("cuda") == torch.device("cuda", 0)
    first, taken = claiming(3)
    assert taken == ["cuda:1", "cuda:1"]
    assert claiming(3)[1] == ["cuda:2", "cuda:2"]
    first.communicate()
    assert claiming(3)[1] == ["cuda:1", "cuda:1"]


@pytest.mark.slow
def test_a_process_for_which_no_gpu_is_left_shares_one(gpus, claiming):
    gpus(1)
    assert devices.claim_device("cuda") == torch.device("cuda", 0)
    assert claiming(1)[1] == ["cuda:0", "cuda:0"]


def test_the_cpu_is_taken_where_it_is_asked_for_or_nothing_else_is_there(gpus):
    gpus(2)
    assert devices.claim_device("cpu") == torch.device("cpu")
    gpus(0)
    assert devices.claim_device("auto") == torch.device("cpu")
    assert devices._claims == {}
    with pytest.raises(ConfigError, match=r"score\.device is cuda"):
        devices.claim_device("cuda")


def test_a_lock_in_the_shared_folder_follows_no_link_and_empties_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with devices.machine_lock("code") as first, devices.machine_lock("code") as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    (lock,) = tmp_path.iterdir()
    lock.unlink()
    mine = tmp_path / "mine"
    mine.write_text("mine")
    lock.symlink_to(mine)
    with pytest.raises(ConfigError, match=f"{lock.name} cannot be opened to be locked"):
        devices.machine_lock("code")
    assert mine.read_text() == "mine"
