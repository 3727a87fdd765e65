"""Stored features of the frozen tower: the same loss, computed once, stale ones refused."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from schemas.errors import ConfigError
from training.config import DataConfig, ModelConfig, OptimizerConfig, ParallelConfig, TrainConfig
from training.data import features
from training.train import train

pytestmark = pytest.mark.slow


def stage_1(parts: dict[str, str], store: str = "", **model: Any) -> TrainConfig:
    return TrainConfig(
        told_samples=0,
        model=ModelConfig(**parts, num_levels=4, **model),
        data=DataConfig(
            tokens_per_sequence=128,
            sequences_per_step=4,
            validation_ratio=0.3,
            workers=0,
            vision_features="store" if store else "compute",
            vision_features_folder=store,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        parallel=ParallelConfig(zero_stage=2, precision="fp32", activation_checkpointing=False),
        max_steps=3,
    )


def metrics(out: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def test_stored_features_give_the_loss_of_computed_ones_and_are_computed_once(
    tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path, monkeypatch: Any
) -> None:
    store = tmp_path / "features"
    assert train(stage_1(tiny_parts), [caption_dataset], str(tmp_path / "computed"))
    assert train(stage_1(tiny_parts, str(store)), [caption_dataset], str(tmp_path / "stored"))
    for name in ("train/loss", "validation/loss", "validation/exchanged_loss"):
        stored, computed = (metrics(tmp_path / run, name) for run in ("stored", "computed"))
        assert stored == pytest.approx(computed, rel=1e-3)
    times = {path: path.stat().st_mtime_ns for path in store.glob("features-*")}
    assert times
    monkeypatch.setattr(features.FeatureStore, "write", None)  # nothing is left to write
    assert train(stage_1(tiny_parts, str(store)), [caption_dataset], str(tmp_path / "again"))
    assert metrics(tmp_path / "again", "train/loss") == metrics(tmp_path / "stored", "train/loss")
    assert {path: path.stat().st_mtime_ns for path in store.glob("features-*")} == times


def test_features_of_another_preprocessing_or_tower_are_refused(
    tiny_parts: dict[str, str], caption_dataset: str, conversation_dataset: str, tmp_path: Path
) -> None:
    store = str(tmp_path / "features")
    config = stage_1(tiny_parts, store)
    assert train(config, [caption_dataset], str(tmp_path / "first"))
    data = dataclasses.replace(config.data, form="conversation")
    other = dataclasses.replace(config, data=data, train_parts=("projector",))
    with pytest.raises(ConfigError, match="stale: preprocessing was"):
        train(other, [conversation_dataset], str(tmp_path / "second"))
    layer = dataclasses.replace(config.model, vision_feature_layer=-1)
    with pytest.raises(ConfigError, match="stale: tower was"):
        deeper = dataclasses.replace(config, model=layer)
        train(deeper, [caption_dataset], str(tmp_path / "third"))


def test_a_full_disk_is_said_before_anything_is_computed(
    tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path, monkeypatch: Any
) -> None:
    nothing = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: nothing)
    with pytest.raises(ConfigError, match="10 bytes are free: make room"):
        config = stage_1(tiny_parts, str(tmp_path / "features"))
        train(config, [caption_dataset], str(tmp_path / "run"))
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize("connector", ["mlp2x_gelu", "pixel_shuffle2_linear"])
def test_a_computed_start_is_kept_in_the_model_and_not_computed_again(
    tiny_parts: dict[str, str],
    caption_dataset: str,
    tmp_path: Path,
    connector: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = stage_1(tiny_parts, connector=connector, projector_start="regression")
    out = tmp_path / "run"
    assert train(config, [caption_dataset], str(out))
    assert "R squared" in capsys.readouterr().err
    started = load_file(out / "projector_start.safetensors")
    weights = load_file(out / "model" / "model.safetensors")
    assert torch.equal(weights["projector.feature_mean"], started["feature_mean"])
    assert float(started["feature_mean"].abs().sum()) > 0
    (out / "finished.json").unlink()
    assert train(config, [caption_dataset], str(out))
    assert "R squared" not in capsys.readouterr().err
    again = load_file(out / "model" / "model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in weights.items())
