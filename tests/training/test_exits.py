import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.training.ranks import start_ranks, start_run
from tests.training.test_kills import at_work, wait_for
from tests.training.test_train import command_line, logged

pytestmark = pytest.mark.slow

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
    while os.environ["RANK"] == "1" and not pathlib.Path("go on").exists():
        time.sleep(0.05)
    return run

training.run.build.Run = slow
"""


@pytest.mark.parametrize("patch", [FIFTH_PASS_FAILS, PICTURES_FAIL], ids=["loop", "worker"])
def test_an_unexpected_error_ends_the_command_and_its_workers(
    tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path, patch: str
) -> None:
    words = command_line(tiny_parts, "pretrain", caption_dataset, tmp_path / "run")
    run = start_run([*words, "--data.workers", "2", "--epochs", "50"], first=patch)
    said, _ = run.communicate(timeout=200)
    assert run.returncode == 1
    assert "RuntimeError: nobody expected this" in said


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
    tiny_parts: dict[str, str],
    caption_dataset: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = command_line(tiny_parts, "pretrain", caption_dataset, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    ranks = start_ranks([*words, "--epochs", "500"], 2, first=SECOND_PROCESS_IS_SLOW)
    try:
        wait_for(lambda: len(list(tmp_path.glob("built-*"))) == 2)
        # Time for the first to enter its loop, if it does not wait for the second.
        time.sleep(4)
        for rank in ranks:
            rank.send_signal(signal.SIGTERM)
        (tmp_path / "go on").touch()
        said = [rank.communicate(timeout=200)[0] for rank in ranks]
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
    with at_work([*words, "--epochs", "5000", "--processes", "2"], out) as run:
        _, second = sorted(psutil.Process(run.pid).children(), key=psutil.Process.create_time)
        second.kill()
        said, _ = run.communicate(timeout=200)
    assert run.returncode == 137
    lines = said.splitlines()
    assert "Traceback (most recent call last):" not in lines
    assert [line for line in lines if "was ended by SIGKILL" in line]
    [line] = [line for line in lines if line.startswith("error: process 0")]
    assert "another process of this run died" in line
    assert len([line for line in lines if "gloo" in line]) <= 1
