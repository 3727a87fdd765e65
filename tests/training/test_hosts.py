"""Training over two hosts; test_whole_hosts.py, `make hosts-test`, has the rest."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.ray_cluster import has_namespaces
from tests.training.test_kills import is_logged
from tests.training.test_train import command_line, logged, tiny_config
from tests.training.two_hosts import Hosts, two_hosts
from training.config import OptimizerConfig, ParallelConfig, TrainConfig
from training.engine.deepspeed import start_distributed, torchs_own_linear_after
from training.run.build import build
from training.run.folder import RunFolder
from training.train import take_steps

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_namespaces(), reason="needs network namespaces: root and iproute2"),
]


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with two_hosts() as hosts:
        yield hosts


def config_and_words(parts: dict[str, str], data: str, out: Path) -> tuple[TrainConfig, list[str]]:
    """Returns a run that no test lives to the end of, and the command for two hosts."""
    config = tiny_config(parts, epochs=500, save_every_steps=2, data={"workers": 1})
    config = replace(
        config,
        optimizer=OptimizerConfig(learning_rate=1e-3),
        parallel=ParallelConfig(zero_stage=3, precision="fp32"),
        model=replace(config.model, chat_template="tokenizer"),
    )
    words = command_line(parts, "pretrain", data, out)
    words += ["--epochs", "500", "--save-every-steps", "2", "--optimizer.learning-rate", "1e-3"]
    words += ["--told-samples", "0", "--parallel.zero-stage", "3"]
    return config, [*words, "--parallel.lost-after-seconds", "4"]


def take(count: int, config: TrainConfig, data: str, out: Path) -> None:
    """Takes the steps of a run until so many are taken, in this process."""
    start_distributed()
    folder = RunFolder(out=out, config=config, data=(data,), init=None)
    with torchs_own_linear_after(), folder.locked(), build(folder) as run:
        for step in take_steps(run):
            if step.number + 1 == count:
                return


def test_where_a_host_is_lost_the_other_says_so_and_goes_on_alone(
    hosts: Hosts, tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    config, words = config_and_words(tiny_parts, caption_dataset, out)
    ranks = [hosts.start_warm(words, number) for number in (0, 1)]
    try:
        give_up_at = time.monotonic() + 300
        while not is_logged(out, 5):
            assert {rank.poll() for rank in ranks} == {None}, ranks[0].communicate(60)[0]
            assert time.monotonic() < give_up_at
            time.sleep(0.05)
        hosts.lose(1)
        said = ranks[0].communicate(timeout=300)[0]
    finally:
        for number in (0, 1):
            hosts.kill(number)
        ranks[1].communicate(timeout=300)
    assert ranks[0].returncode == 1
    [line] = [line for line in said.splitlines() if line.startswith("error:")]
    assert f"process 1 on {hosts.names[1]} is lost (its host did not answer for 4 s)" in line
    assert "Traceback" not in said
    steps = len(logged(out, "train/loss")) + 1
    take(steps, config, caption_dataset, whole)
    take(steps, config, caption_dataset, out)
    for name in ("train/samples_checksum", "train/samples", "train/learning_rate"):
        assert logged(out, name) == logged(whole, name)
    assert logged(out, "train/loss") == pytest.approx(logged(whole, "train/loss"), rel=1e-4)
