"""The Slurm script, with stand-ins for srun and scontrol: a cluster is not to be had."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from training.engine.launch import STOP_SIGNALS

SCRIPT = Path(__file__).parents[2] / "deploy" / "train.slurm"
SCONTROL = """#!/bin/bash
[ "$1" = show ] && printf 'gpu-1\\ngpu-2\\n' || echo "$@" >> "$DID/scontrol"
"""
SRUN = """#!/bin/bash
printf '%s\\n' "$@" > "$DID/srun"
save() { mkdir -p "$OUT/checkpoints"; echo "$1" > "$OUT/checkpoints/latest"; }
case $STORY in
  finishes) mkdir -p "$OUT"; touch "$OUT/finished.json"; exit 0;;
  fails) exit 2;;
  saves_and_fails) save step-2; exit 1;;
esac
trap 'save step-4; exit 1' USR1
touch "$DID/waits"
while :; do sleep 0.05; done
"""


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a job's script on its first host."""
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "DID": str(tmp_path),
        "OUT": str(tmp_path / "run"),
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NODELIST": "gpu-[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
    }


def start(job: dict[str, str], story: str) -> subprocess.Popen[str]:
    words = ["finetune", "--data", "two words", "--out", job["OUT"], "--epochs", "1"]
    return subprocess.Popen(
        ["bash", str(SCRIPT), *words],
        env={**job, "STORY": story},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(job: dict[str, str], process: subprocess.Popen[str]) -> tuple[int, str]:
    """Returns the status, and what scontrol was asked for but the hosts' names."""
    process.communicate(timeout=120)
    did = Path(job["DID"]) / "scontrol"
    return process.returncode, did.read_text().strip() if did.exists() else ""


def test_it_starts_torchrun_on_each_host_with_the_commands_words(
    job: dict[str, str], tmp_path: Path
) -> None:
    assert outcome(job, start(job, "finishes")) == (0, "")
    words = (tmp_path / "srun").read_text().splitlines()
    launcher, command = words[: words.index("training.cli")], words[words.index("training.cli") :]
    assert command[1:6] == ["finetune", "--data", "two words", "--out", job["OUT"]]
    assert launcher[launcher.index("--nnodes") + 1] == "2"
    assert launcher[launcher.index("--nproc-per-node") + 1] == "8"
    assert launcher[launcher.index("--rdzv-endpoint") + 1] == "gpu-1:23456"
    handled = launcher[launcher.index("--signals-to-handle") + 1].split(",")
    assert {number.name for number in STOP_SIGNALS} <= set(handled)


def test_a_job_that_is_warned_saves_and_is_queued_again(
    job: dict[str, str], tmp_path: Path
) -> None:
    process = start(job, "is_warned")
    while not (tmp_path / "waits").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    assert outcome(job, process) == (0, "requeue 123456")
    assert (Path(job["OUT"]) / "checkpoints" / "latest").read_text() == "step-4\n"


@pytest.mark.parametrize(
    ("story", "expected"), [("fails", (2, "")), ("saves_and_fails", (0, "requeue 123456"))]
)
def test_a_job_that_failed_is_queued_again_if_it_got_further(
    job: dict[str, str], story: str, expected: tuple[int, str]
) -> None:
    assert outcome(job, start(job, story)) == expected


def test_without_a_runs_folder_nothing_starts(job: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(SCRIPT), "finetune"], env=job, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "--out RUN" in done.stderr
    assert not (tmp_path / "srun").exists()
