import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from schemas.errors import DatasetError, LossNotFinite
from tests.training.ranks import start_ranks
from tests.training.test_train import (
    command_line,
    logged,
    stage_2,
    tiny_config,
)
from training.config import OptimizerConfig, ParallelConfig
from training.loss import batch_loss
from training.train import train


@pytest.fixture
def damaged(conversation_dataset: str, tmp_path: Path) -> tuple[str, str]:
    """Returns a dataset in which one picture's bytes are zeros, and the sample's key."""
    folder = shutil.copytree(conversation_dataset, tmp_path / "damaged")
    rows = pq.read_table(folder / "train" / "000001.parquet").to_pylist()
    row = next(row for row in rows if row["image_offset"] is not None)
    with (folder / "train" / "000001.tar").open("r+b") as tar:
        tar.seek(row["image_offset"])
        tar.write(bytes(row["image_bytes"]))
    return str(folder), row["key"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_picture_stops_the_run_and_is_named_with_its_shard(
    tiny_parts: dict[str, str], damaged: tuple[str, str], tmp_path: Path, workers: int
) -> None:
    folder, key = damaged
    config = stage_2(tiny_parts, data={"validation_ratio": 0.0, "workers": workers})
    with pytest.raises(DatasetError, match=f"{key} in .*000001.tar cannot be decoded"):
        train(config, [folder], str(tmp_path / "run"))


@pytest.mark.slow
def test_a_corrupt_picture_ends_the_command_and_its_workers_and_is_named_in_one_line(
    tiny_parts: dict[str, str], damaged: tuple[str, str], tmp_path: Path
) -> None:
    folder, key = damaged
    words = command_line(tiny_parts, "pretrain", folder, tmp_path / "run")
    words += ["--data.form", "conversation", "--data.workers", "2"]
    words += ["--train-parts", "projector", "gate", "language_model"]
    [run] = start_ranks(words, 1)
    said, _ = run.communicate(timeout=300)
    assert run.returncode == 2
    [line] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert said.endswith(line + "\n")
    assert line.startswith(f"error: the image of {key} in {folder}/train/000001.tar cannot be")
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_corrupt_picture_can_be_skipped_and_is_counted_and_the_plan_stays(
    tiny_parts: dict[str, str], damaged: tuple[str, str], conversation_dataset: str, tmp_path: Path
) -> None:
    folder, _ = damaged
    data: dict[str, Any] = {"validation_ratio": 0.0, "on_corrupt": "skip"}
    config = stage_2(tiny_parts, data=data, epochs=2)
    whole, skipping = tmp_path / "whole", tmp_path / "skipping"
    assert train(config, [conversation_dataset], str(whole))
    assert train(config, [folder], str(skipping))
    skipped = logged(skipping, "train/skipped_samples")
    assert sum(skipped) == 2  # once in each epoch
    assert sum(logged(whole, "train/skipped_samples")) == 0
    kept = logged(skipping, "train/samples")
    assert [n + s for n, s in zip(kept, skipped, strict=True)] == logged(whole, "train/samples")


@pytest.mark.parametrize("on_corrupt", ["error", "skip"])
def test_a_shard_that_is_not_there_stops_the_run_and_is_named_with_a_key(
    tiny_parts: dict[str, str], conversation_dataset: str, tmp_path: Path, on_corrupt: str
) -> None:
    folder = shutil.copytree(conversation_dataset, tmp_path / "data")
    (folder / "train" / "000001.tar").unlink()
    data: dict[str, Any] = {"validation_ratio": 0.0, "on_corrupt": on_corrupt}
    with pytest.raises(DatasetError, match=r"image of \w+ cannot be read, since .*000001\.tar"):
        train(stage_2(tiny_parts, data=data), [str(folder)], str(tmp_path / "run"))


@pytest.mark.slow
def test_pictures_behind_the_end_of_a_short_shard_are_skipped(
    tiny_parts: dict[str, str], conversation_dataset: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(conversation_dataset, tmp_path / "data")
    rows = pq.read_table(folder / "train" / "000001.parquet").to_pylist()
    last = max(row["image_offset"] or 0 for row in rows)
    os.truncate(folder / "train" / "000001.tar", last + 1)
    data: dict[str, Any] = {"validation_ratio": 0.0, "on_corrupt": "skip"}
    config = stage_2(tiny_parts, data=data, epochs=1)
    assert train(config, [str(folder)], str(tmp_path / "run"))
    assert sum(logged(tmp_path / "run", "train/skipped_samples")) == 1


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(
    tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path
) -> None:
    optimizer = OptimizerConfig(learning_rate=1e30, warmup_ratio=0.0, max_gradient_norm=0.0)
    config = replace(tiny_config(tiny_parts), optimizer=optimizer, save_every_steps=1)
    with pytest.raises(LossNotFinite, match=r"step \d+ is (nan|inf)") as stopped:
        train(config, [caption_dataset], str(tmp_path))
    said = str(stopped.value).split("the samples ")[1].split(". Lower")[0]
    named = re.findall(r"[0-9a-f]{32}", said)
    rows = [
        row["key"]
        for path in sorted(Path(caption_dataset, "train").glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    assert len(named) == 10 and set(named) <= set(rows)
    assert re.search(r" and \d+ more$", said)
    state = json.loads((tmp_path / "checkpoints" / "step-00000001" / "run.json").read_text())
    assert state["step"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(("zero_stage", "precision"), [(0, "fp32"), (2, "fp32"), (3, "bf16")])
def test_a_gradient_that_is_not_finite_stops_the_run_before_it_is_saved(
    tiny_parts: dict[str, str],
    caption_dataset: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    zero_stage: Any,
    precision: Any,
) -> None:
    """The losses are finite; the gradient of the fifth forward pass, of step 1, is not."""
    passes = []

    def with_infinite_gradient(*arguments: Any) -> Any:
        loss = batch_loss(*arguments)
        passes.append(loss)
        if len(passes) == 5:
            loss.total.register_hook(lambda gradient: gradient * torch.inf)
        return loss

    monkeypatch.setattr("training.train.batch_loss", with_infinite_gradient)
    parallel = ParallelConfig(zero_stage=zero_stage, precision=precision)
    config = replace(tiny_config(tiny_parts, parallel=parallel), save_every_steps=1)
    with pytest.raises(LossNotFinite, match=r"gradient of step 1 is not finite, its loss was \d"):
        train(config, [caption_dataset], str(tmp_path))
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000001\n"
