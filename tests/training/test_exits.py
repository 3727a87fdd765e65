import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.training.test_kills import at_work, wait_for
from tests.training.test_train import command_line, logged, own_environment
from training.engine.launch import free_port

pytestmark = pytest.mark.slow

RUN = "import sys\nfrom training.cli import run\nsys.exit(run(sys.argv[1:]))\n"
FIFTH_PASS_FAILS = """
import training.train

passes, batch_loss = [], training.train.batch_loss

def fails_once(*arguments):
    passes.append(arguments)
    if len(passes) == 5:
        raise RuntimeError("nobody expected this")
    return batch_loss(*arguments)

training.train.batch_loss = fails_once
"""
PICTURES_FAIL = """
import training.data.loader

def fails(sample):
    raise RuntimeError("nobody expected this")

training.data.loader.open_images = fails
"""
SECOND_PROCESS_IS_SLOW = """
import os, pathlib, time
import training.run.build

make = training.run.build.Run

def slow(**parts):
    run = make(**parts)
    pathlib.Path(f"built-{os.environ['RANK']}").touch()
    if os.environ["RANK"] == "1":
        time.sleep(12)
    return run

training.run.build.Run = slow
"""


@pytest.mark.parametrize("patch", [FIFTH_PASS_FAILS, PICTURES_FAIL], ids=["loop", "worker"])
def test_an_unexpected_error_ends_the_command_and_its_workers(
    tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path, patch: str
) -> None:
    options = command_line(tiny_parts, "pretrain", caption_dataset, tmp_path / "run")[3:]
    done = subprocess.run(
        [sys.executable, "-c", patch + RUN, *options, "--data.workers", "2", "--epochs", "50"],
        capture_output=True,
        text=True,
        timeout=200,
        env=own_environment(),
        check=False,
    )
    assert done.returncode == 1
    assert "RuntimeError: nobody expected this" in done.stderr


def test_sigterm_for_the_whole_process_group_saves_and_ends_with_143(
    tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = command_line(tiny_parts, "pretrain", caption_dataset, out)
    with at_work([*words, "--epochs", "5000", "--data.workers", "2"], out) as run:
        os.killpg(run.pid, signal.SIGTERM)
        assert run.wait(timeout=200) == 143
    step = int((out / "checkpoints" / "latest").read_text().strip().removeprefix("step-"))
    assert step == len(logged(out, "train/loss"))


def test_sigterm_while_a_process_still_builds_ends_all_of_them_with_143(
    tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path
) -> None:
    options = command_line(tiny_parts, "pretrain", caption_dataset, tmp_path / "run")[3:]
    command = [sys.executable, "-c", SECOND_PROCESS_IS_SLOW + RUN, *options, "--epochs", "500"]
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    places |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "PYTHONPATH": str(Path.cwd())}
    ranks = [
        subprocess.Popen(
            command,
            env={**own_environment(), **places, "RANK": rank, "LOCAL_RANK": rank},
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        wait_for(lambda: len(list(tmp_path.glob("built-*"))) == 2)
        # Time for the first to enter its loop, if it does not wait for the second.
        time.sleep(4)
        for rank in ranks:
            rank.send_signal(signal.SIGTERM)
        said = [rank.communicate(timeout=200)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [143, 143]
    assert "stopped by SIGTERM before the first step" in said[0]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_death_of_another_process_is_one_line(
    tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = command_line(tiny_parts, "pretrain", caption_dataset, out)
    words += ["--epochs", "5000", "--processes", "2"]
    with (tmp_path / "said").open("w") as said:
        run = subprocess.Popen(words, env=own_environment(), stderr=said, start_new_session=True)
    try:
        wait_for(lambda: (out / "metrics.jsonl").exists() and len(logged(out, "train/loss")) > 2)
        [second] = [
            child
            for child in psutil.Process(run.pid).children()
            if child.environ().get("RANK") == "1"
        ]
        second.kill()
        assert run.wait(timeout=200) == 137
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
    lines = (tmp_path / "said").read_text().splitlines()
    assert "Traceback (most recent call last):" not in lines
    assert [line for line in lines if "was ended by SIGKILL" in line]
    [line] = [line for line in lines if line.startswith("error: process 0")]
    assert "process 1 on" in line
    assert "is lost (it was killed)" in line
    assert len([line for line in lines if "gloo" in line]) <= 1
