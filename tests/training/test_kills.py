import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.curations import kill
from tests.training.ranks import run_ranks, start_ranks
from tests.training.test_train import command_line, logged, own_environment, stage_2
from training.config import LoraConfig
from training.train import train

EPOCHS = 10
"""Of three or four steps each: two kills have room between the first checkpoint and the end."""


def run_until(words: list[str], processes: int, out: Path, steps: int) -> None:
    """Runs the command until so many steps are logged, then kills all of its processes."""
    ranks = start_ranks(words, processes)
    try:
        give_up_at = time.monotonic() + 300
        while not is_logged(out, steps) and time.monotonic() < give_up_at:
            assert {rank.poll() for rank in ranks} == {None}, "it ended before it could be killed"
            time.sleep(0.05)
    finally:
        for rank in ranks:
            kill(rank)
    assert is_logged(out, steps)


def is_logged(out: Path, steps: int) -> bool:
    if not (out / "metrics.jsonl").exists() or not (out / "checkpoints" / "latest").exists():
        return False
    whole_lines = (out / "metrics.jsonl").read_text().split("\n")[:-1]
    return sum('"train/loss"' in line for line in whole_lines) >= steps


@pytest.mark.slow
@pytest.mark.parametrize(("zero_stage", "rank"), [(2, 0), (3, 0), (2, 4)])
def test_kills_on_two_one_and_two_processes_change_neither_order_nor_loss(
    tiny_parts: dict[str, str],
    conversation_dataset: str,
    tmp_path: Path,
    zero_stage: int,
    rank: int,
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    config = replace(stage_2(tiny_parts, epochs=EPOCHS), lora=LoraConfig(rank=rank))
    assert train(config, [conversation_dataset], str(whole))
    words = command_line(tiny_parts, "pretrain", conversation_dataset, killed)
    words += ["--parallel.zero-stage", str(zero_stage), "--data.form", "conversation"]
    words += ["--train-parts", "projector", "gate", "language_model", "--epochs", str(EPOCHS)]
    words += ["--optimizer.learning-rate", "1e-3", "--lora.rank", str(rank)]
    words += ["--save-every-steps", "3"]
    if rank == 0:  # rows and plans mapped from files that all processes share
        words += ["--data.rows-folder", str(tmp_path / "rows")]
    run_until(words, 2, killed, 5)
    run_until(words, 1, killed, len(logged(whole, "train/loss")) // 3)
    run_ranks(words, 2)
    for name in ("train/samples_checksum", "train/samples", "train/learning_rate"):
        assert logged(killed, name) == logged(whole, name)
    assert logged(killed, "train/loss") == pytest.approx(logged(whole, "train/loss"), rel=1e-4)
    end = logged(whole, "validation/loss")[-1]
    assert logged(killed, "validation/loss")[-1] == pytest.approx(end, rel=1e-4)
    assert (killed / "model" / "model.safetensors").exists()


@pytest.mark.slow
def test_processes_whose_launcher_is_killed_save_and_end(
    tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = command_line(tiny_parts, "pretrain", caption_dataset, out)
    with at_work([*words, "--epochs", "5000", "--processes", "2"], out) as launcher:
        launcher.kill()
        wait_for((out / "checkpoints" / "latest").exists)
        wait_for(lambda: not is_at_work(launcher.pid))


@contextmanager
def at_work(words: list[str], out: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command in a process group of its own, some steps into its run; killed at the end."""
    with subprocess.Popen(words, env=own_environment(), start_new_session=True) as run:
        try:
            wait_for(
                lambda: (out / "metrics.jsonl").exists() and len(logged(out, "train/loss")) > 2
            )
            yield run
        finally:
            if is_at_work(run.pid):
                os.killpg(run.pid, signal.SIGKILL)


def wait_for(is_so: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 200
    while not is_so():
        assert time.monotonic() < give_up_at
        time.sleep(0.1)


def is_at_work(group: int) -> bool:
    """Returns whether a process of the group runs; dead ones that nobody waited for do not."""
    found = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True)
    lines = [line.split() for line in found.stdout.splitlines()]
    return any(int(pgid) == group and not state.startswith("Z") for pgid, state in lines)
