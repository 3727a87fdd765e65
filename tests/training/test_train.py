import json
from pathlib import Path
from typing import Any

from training.config import DataConfig, ModelConfig, OptimizerConfig, ParallelConfig, TrainConfig
from training.train import train


def tiny_config(parts: dict[str, str], **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "model": ModelConfig(**parts, num_levels=4),
        "data": DataConfig(
            tokens_per_sequence=128, sequences_per_step=4, validation_ratio=0.2, workers=0
        ),
        "optimizer": OptimizerConfig(learning_rate=1e-2),
        "parallel": ParallelConfig(zero_stage=2, precision="fp32"),
        "epochs": 2,
    }
    return TrainConfig(**{**values, **changes})


def metrics_of(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_stage_1_learns_and_leaves_a_model(
    tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path
) -> None:
    assert train(tiny_config(tiny_parts), [caption_dataset], str(tmp_path / "run"))
    validation = [
        m["validation/loss"] for m in metrics_of(tmp_path / "run") if "validation/loss" in m
    ]
    assert validation[-1] < validation[0]
    assert (tmp_path / "run" / "model" / "config.json").exists()
    assert (tmp_path / "run" / "loss.png").stat().st_size > 1000
